"""bf16 on a real one-rank DeepSpeed engine: steps too small for a weight of 8 bits add up in its fp32 copy."""

from itertools import pairwise

import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param

from ds_stage2ab.engine.tuner import merged_tensors
from ds_stage2ab.engine.whole_model import WholeModel
from tests.unit.engine.stage import PER_DEVICE

NORM = "model.language_model.norm.weight"  # all ones at first, of which bf16 knows 1 - 2^-8 as the next below
RESOLUTION = 2**-8
STEPS = 12
SMALL = {"model.precision": "bf16", "training.learning_rate": 5e-3, "training.max_steps": STEPS}


@pytest.mark.parametrize(
    ("zero_stage", "offload"), [pytest.param(1, "none", marks=pytest.mark.soak), (2, "cpu"), (3, "none")]
)
def test_small_steps_add_up_in_fp32_copies(build, world, zero_stage, offload):
    """And what leaves the model, to a server or a file, are its own bf16 weights: what it computes with itself."""
    whole_models = []

    def before(model):
        whole_models.append(WholeModel(model, world, is_partitioned=zero_stage == 3))

    changes = {**SMALL, "deepspeed.zero_stage": zero_stage, "deepspeed.offload_optimizer": offload}
    stage = build(changes, before=before)
    stage.window.draw = lambda step, micro_step: stage.bench.samples[micro_step * PER_DEVICE :][:PER_DEVICE]
    named = dict(stage.bench.model.named_parameters())
    copies, norms = [], []
    for step in range(STEPS + 1):
        copies.append({name: safe_get_full_fp32_param(parameter).clone() for name, parameter in named.items()})
        weights = stage.weights()
        assert weights.keys() == copies[-1].keys()
        for name, weight in weights.items():
            assert (weight.dtype, copies[-1][name].dtype) == (torch.bfloat16, torch.float32)
            assert torch.equal(weight, copies[-1][name].bfloat16()), name
        norms.append(weights[NORM])
        if step < STEPS:
            assert stage.window.run(step, stage.channel).applied
    assert not any(torch.equal(copies[1][name], copy) for name, copy in copies[0].items())
    moves = torch.stack([after[NORM] - before[NORM] for before, after in pairwise(copies)])
    assert moves.abs().max() < RESOLUTION / 4  # no step alone could move a one of bf16, which takes half of it
    assert torch.equal(norms[1], norms[0])
    moved = norms[-1] != norms[0]
    assert moved.any() and not moved.all()
    assert torch.equal(moves.sum(dim=0)[moved] < 0, norms[-1][moved] < norms[0][moved])
    assert_leave(whole_models[0], stage.weights())


def assert_leave(whole_model, weights):
    """Two bytes of each weight."""
    left = {}
    for one in merged_tensors(whole_model.layout):
        with whole_model.part(one.needs, "cpu", only_first=True):
            left[one.name] = one.make().clone()
    assert left.keys() == weights.keys()
    for name, tensor in left.items():
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, weights[name]), name
    assert sum(tensor.nbytes for tensor in left.values()) == 2 * sum(weight.numel() for weight in weights.values())

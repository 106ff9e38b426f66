"""One step on a real one-rank DeepSpeed engine that asks the allocator for more than there is, at each place of it."""

from contextlib import nullcontext
from unittest import mock

import pytest
import torch

from ds_stage2ab.engine.build import position_index
from ds_stage2ab.errors import EXIT_ENVIRONMENT, EnvironmentFault, LocalFault
from ds_stage2ab.rollout.hf import HfBackend
from tests.unit.engine.stage import Watched, assert_bit_equal
from tests.unit.parts import START_ID

PLAN = "(packs hold up to 512 tokens; 8 samples per step = 4 per rank x 1 rank x 2 micro-steps; ZeRO stage 0)"


def ask_for_too_much(*words, **options):
    """Torch's own refusal: 2^50 bytes."""
    torch.empty(1 << 50, dtype=torch.uint8)


def test_while_rollouts_are_drawn(build):
    """The ranks agree on it: one of them says it for all."""
    stage = build()
    model = stage.bench.model
    backend = HfBackend(
        lambda: nullcontext(model),
        stage.bench.vocabulary,
        position_index(model),
        decode_batch_size=4,
        start_id=START_ID,
        seed=0,
    )
    before = stage.weights()
    model.lm_head.register_forward_pre_hook(ask_for_too_much)
    with pytest.raises(EnvironmentFault) as caught:
        stage.window.run(0, stage.bench.rollout_matching(backend))
    assert (type(caught.value), caught.value.code) == (EnvironmentFault, EXIT_ENVIRONMENT)
    of_step = stage.bench.samples[: stage.window.plan.effective_batch_size]
    in_turn = sorted(of_step, key=lambda sample: -len(sample.objects))
    names = ", ".join(sample.id for sample in in_turn[:3])
    where = f"in a pass of 0 answers and the prompts of 4 samples ({names})"
    assert caught.value.why == f"out of memory in step 1, getting the segments of Channel B, {where} {PLAN}"
    for key in ("rollout_matching.decode_batch_size", "rollout_matching.max_new_tokens", "deepspeed.zero_stage"):
        assert key in caught.value.fix
    assert_bit_equal(stage.weights(), before)
    assert model.training


def test_in_the_update(build):
    stage = build()
    with mock.patch.object(stage.engine.optimizer, "step", ask_for_too_much), pytest.raises(LocalFault) as caught:
        stage.window.run(0, stage.channel)
    assert caught.value.why == f"rank 0 is out of memory in step 1, in the update {PLAN}"
    for key in ("deepspeed.zero_stage", "deepspeed.offload_optimizer"):
        assert key in caught.value.fix


def test_in_a_pack(build):
    stage = build()
    stage.bench.model.lm_head.register_forward_pre_hook(ask_for_too_much)
    with pytest.raises(LocalFault, match=r"rank 0 is out of memory in step 1, in a pack of \d+ tokens \(p") as caught:
        stage.window.run(0, stage.channel)
    for key in ("training.global_max_length", "model.gradient_checkpointing", "deepspeed.zero_stage"):
        assert key in caught.value.fix


@pytest.mark.parametrize("error", [RuntimeError("another one"), ValueError("no memory of it")])
def test_another_error_stays_what_it_is(build, error):
    class Failing(Watched):
        def segments(self, samples, step, clock):
            raise error

    stage = build()
    with pytest.raises(type(error)) as caught:
        stage.window.run(0, Failing(stage.bench))
    assert caught.value is error


@pytest.mark.parametrize(
    "said", ["CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "CUDA error: out of memory"]
)
def test_a_library_of_a_gpu_without_memory(build, said):
    """It has no error of torch's for that."""

    def refuse(*words):
        raise RuntimeError(said)

    stage = build()
    stage.bench.model.lm_head.register_forward_pre_hook(refuse)
    with pytest.raises(LocalFault, match="rank 0 is out of memory in step 1, in a pack of"):
        stage.window.run(0, stage.channel)

"""The gradient of a bf16 step as DeepSpeed has added it up, beside the same gradients of packs added in float64.

accumulated.py MODEL DATA: as one of the ranks of a step of 8 packs, prints the error under each ZeRO stage, as JSON.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from deepspeed.utils import safe_get_full_fp32_param

from ds_stage2ab.config.load import load_config
from ds_stage2ab.engine.build import start_process_group
from ds_stage2ab.packs.collate import collate
from ds_stage2ab.runtime.ranks import World
from tests.parts import Quickstart, config_values, merged, write_config
from tests.unit.engine.stage import Stage, stage_of

RATE = 1e4  # of SGD: a move beside which the fp32 rounding of the weight is nothing
TIMEOUT_S = 300


def changes_for(num_packs: int, zero_stage: int, offload: str = "none", ranks: int = 1) -> dict:
    return {
        "model.precision": "bf16",
        "training.learning_rate": RATE,
        "training.packing": False,
        "training.effective_batch_size": num_packs,
        "training.per_device_train_batch_size": num_packs // ranks,
        "training.max_steps": 2,
        "training.max_bad_steps": 1,
        "deepspeed.zero_stage": zero_stage,
        "deepspeed.offload_optimizer": offload,
    }


def error_of(
    stage_with: Callable[[dict], Stage],
    num_packs: int,
    zero_stage: int,
    offload: str = "none",
    *,
    ranks: int = 1,
    expected: dict[str, torch.Tensor] | None = None,
    after_a_bad_step: bool = False,
) -> float:
    """Error of a step's gradient, of its norm; of the worst tensor.

    Args:
        expected: `exact_gradient`, if it is known.
        after_a_bad_step: one with losses that are not finite, which must not be applied, comes before it.
    """
    expected = expected or exact_gradient(stage_with, num_packs, ranks)
    stage, each = stage_with(changes_for(num_packs, zero_stage, offload, ranks)), num_packs // ranks
    first = stage.window.world.rank * each
    samples = stage.bench.samples
    stage.window.draw = lambda step, micro_step: [samples[(first + n) % len(samples)] for n in range(each)]
    before, forward = _copies_of(stage), stage.objective.forward
    if after_a_bad_step:
        stage.objective.forward = lambda pack: (forward(pack)[0] * torch.nan, forward(pack)[1])
        assert not stage.window.run(0, stage.channel).applied
        stage.objective.forward = forward
        assert all(torch.equal(before[name], copy) for name, copy in _copies_of(stage).items())
    assert stage.window.run(int(after_a_bad_step), stage.channel).applied
    moves = {name: before[name] - copy for name, copy in _copies_of(stage).items()}
    return max((moves[name] / RATE - total).norm().item() / total.norm().item() for name, total in expected.items())


def exact_gradient(stage_with: Callable[[dict], Stage], num_packs: int, ranks: int) -> dict[str, torch.Tensor]:
    """Of the packs of all ranks, in float64."""
    plain = stage_with(changes_for(num_packs, 1, ranks=ranks))  # whose weights are whole on every rank
    some = plain.bench.segments()
    return _added_exactly(plain, [some[number % len(some)] for number in range(num_packs)])


def _copies_of(stage: Stage) -> dict[str, torch.Tensor]:
    """The fp32 weights that the optimizer moves, in float64."""
    named = stage.bench.model.named_parameters()
    return {name: safe_get_full_fp32_param(parameter).double() for name, parameter in named}


def _added_exactly(stage: Stage, segments: list) -> dict[str, torch.Tensor]:
    """The gradient of each pack, as bf16 has it."""
    named = dict(stage.bench.model.named_parameters())
    total = {name: torch.zeros(parameter.shape, dtype=torch.float64) for name, parameter in named.items()}
    for segment in segments:
        loss = stage.objective(collate([segment], num_passes=1))[0] / len(segments)
        for name, gradient in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
            total[name] += gradient.double()
    return total


def main(model: str, data: str) -> None:
    world = World(start_process_group(TIMEOUT_S))
    parts = Quickstart(model=Path(model), plain=Path(model), data=Path(data))
    with TemporaryDirectory() as folder:

        def stage_with(changes: dict) -> Stage:
            values = merged(config_values(parts, Path(folder), "sum"), changes)
            return stage_of(load_config(write_config(Path(folder) / "c.yaml", values)).config, world, parts)

        known = {"ranks": world.size, "expected": exact_gradient(stage_with, 8, world.size)}
        print(json.dumps({zero_stage: error_of(stage_with, 8, zero_stage, **known) for zero_stage in (1, 2, 3)}))
    world.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

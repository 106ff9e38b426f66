"""One of two ranks that run one step; prints what came of it, as JSON.

window_rank.py CONFIG MODEL DATA FAULT: with FAULT `infinite` rank 1 sees losses that are infinite, of finite gradients;
with `uneven` rank 1 skips its first sample, and rank 0 is the slower one at rollouts.
"""

import json
import sys
from pathlib import Path

import torch

from ds_stage2ab.carriers import Skipped
from ds_stage2ab.config.load import load_config
from ds_stage2ab.engine.build import start_process_group
from ds_stage2ab.runtime.ranks import World
from tests.parts import Quickstart
from tests.unit.engine.stage import Watched, mean_loss_alone, moved_by, stage_of

TIMEOUT_S = 300


def main(config_path: str, model: str, data: str, fault: str) -> None:
    config = load_config(Path(config_path)).config
    world = World(start_process_group(TIMEOUT_S))
    stage = stage_of(config, world, Quickstart(model=Path(model), plain=Path(model), data=Path(data)))
    loss, gradients = mean_loss_alone(stage, 0)
    before = stage.weights()
    if fault == "infinite" and world.rank == 1:
        forward = stage.objective.forward
        stage.objective.forward = lambda pack: (forward(pack)[0] + torch.inf, forward(pack)[1])
    if fault == "uneven":
        make_uneven(stage.channel, world.rank)
    result = stage.window.run(0, stage.channel)
    after, rate = stage.weights(), stage.plan.learning_rate(0)
    wrong = [name for name, gradient in gradients.items() if not moved_by(after[name], before[name], -rate * gradient)]
    moved = [name for name, tensor in after.items() if not torch.equal(tensor, before[name])]
    seen = {"loss": [result.loss, loss], "applied": result.applied, "wrong": wrong, "moved": moved}
    skipped, seconds = [one.draw for one in result.skipped], result.seconds.get("rollout")
    print(json.dumps({**seen, "samples": result.samples, "skipped": skipped, "rollout_s": seconds}))
    world.close()


def make_uneven(channel: Watched, rank: int) -> None:
    """Rollouts of 9 s on rank 0 and of 5 s on rank 1, whose first sample is skipped."""
    plain = channel.segments

    def segments(samples, step, clock):
        clock.seconds["rollout"] = 9.0 - 4.0 * rank
        first, *others = plain(samples, step, clock)
        skipped = Skipped(sample_id=first.sample_id, draw=first.draw, why="it is too long")
        return [skipped if rank == 1 else first, *others]

    channel.segments = segments


if __name__ == "__main__":
    main(*sys.argv[1:])

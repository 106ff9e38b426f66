"""Every rollout of Channel B as a line of JSON, so that what a run trained on can be read afterwards."""

import json
from collections.abc import Sequence
from pathlib import Path

from ds_stage2ab.carriers import Rollout
from ds_stage2ab.errors import EnvironmentFault


class RolloutLog:
    """Appends to one file per rank, each step at once.

    Args:
        folder: `rollouts/` of the run folder; made when the first rollouts come.
        rank: names the file, `rank-00000.jsonl`.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.path = folder / f"rank-{rank:05d}.jsonl"

    def __call__(self, step: int, rollouts: Sequence[Rollout]) -> None:
        """Write the rollouts that were drawn after `step` finished steps.

        Raises:
            EnvironmentFault: the file cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(_line(step, rollout) for rollout in rollouts)
        except OSError as error:
            raise EnvironmentFault(
                f"the rollouts of step {step + 1} cannot be written: {error.strerror}",
                where=str(self.path),
                fix="free space on that disk, or set logging.rollouts to false",
            ) from error


def _line(step: int, rollout: Rollout) -> str:
    values = {
        "finished_steps": step,
        "draw": rollout.draw,
        "sample_id": rollout.sample_id,
        "response_ids": rollout.response_ids,
        "finish": rollout.finish,
        "weight_version": rollout.weight_version,
        "seed": rollout.seed,
        "source": rollout.source,
        "seconds": round(rollout.seconds, 6),
    }
    return json.dumps(values, ensure_ascii=False) + "\n"

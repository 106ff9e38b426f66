"""`ds-stage2ab checkpoints RUN`: what a run can go on from. No torch."""

from pathlib import Path

from rich.table import Table

from ds_stage2ab.engine.resume import saved_steps, step_name, unusable
from ds_stage2ab.engine.run_folder import RunFolder, best_name
from ds_stage2ab.errors import EnvironmentFault, printable
from ds_stage2ab.metrics.journal import EvaluationRecord, read_history

SHOWN = ("eval/f1", "eval/f1_boxes")
MIB = 2**20


def checkpoints_table(run: Path, *, verify: bool) -> Table:
    """A row for each published checkpoint: steps, size, the figures of its evaluation, and whether it is whole.

    Args:
        verify: read every file and compare its digest.

    Raises:
        EnvironmentFault: there are none.
    """
    folder = RunFolder(run, locked=False)
    steps = saved_steps(folder.checkpoints)
    if not steps:
        raise EnvironmentFault("this run has no checkpoint", where=printable(str(run)), fix="name the folder of a run")
    evaluations = read_history(folder.metrics).evaluations if folder.metrics.is_file() else ()
    best = best_name(folder.checkpoints)
    by_step = {one.step: one for one in evaluations}
    table = Table("step", "MiB", *(name.removeprefix("eval/") for name in SHOWN), "state", title=printable(run.name))
    for step in steps:
        place = folder.checkpoints / step_name(step)
        fault = unusable(place, digests=verify)
        named = " (best)" if place.name == best else ""
        table.add_row(
            f"{step}{named}", f"{_bytes(place) / MIB:,.1f}", *_figures(by_step.get(step)), fault or _good(verify)
        )
    return table


def _figures(evaluation: EvaluationRecord | None) -> list[str]:
    metrics = evaluation.metrics if evaluation else {}
    return [f"{metrics[name]:.3f}" if name in metrics else "" for name in SHOWN]


def _good(verify: bool) -> str:
    return "complete, every file as it was written" if verify else "complete"


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

"""Checkpoints of the tests: made by one call, complete when it returns."""

from ds_stage2ab.config.sections import CheckpointSection
from ds_stage2ab.engine.resume import step_name


def section(**changes):
    values = {
        "every_steps": None,
        "keep_last": 2,
        "keep_best": None,
        "save_by": None,
        "on_error": "stop",
        "engine_state": True,
    }
    return CheckpointSection(**{**values, **changes})


def save(checkpoints, finished_steps, **options):
    """Write and complete one; returns its folder."""
    checkpoints.save(finished_steps, **options)
    checkpoints.settle()
    return checkpoints.folder / step_name(finished_steps)

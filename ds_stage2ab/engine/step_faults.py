"""The errors of a step that is not applied: the cause, the samples, and what to do."""

from ds_stage2ab.carriers import Skipped
from ds_stage2ab.errors import DataError, TrainingFault, printable

MAX_NAMED = 16
"""Sample ids that a message lists before it counts the rest."""
NONFINITE_FIX = "lower training.learning_rate, and look at these samples"


def nonfinite_loss(step: int, sample_ids: list[str], loss: float) -> TrainingFault:
    """The loss of a pack of this rank is not finite; no weight has changed yet."""
    return TrainingFault(
        f"a loss of step {step + 1} is {loss}; no weight was changed by this step",
        where=_named(sample_ids),
        fix=NONFINITE_FIX,
    )


def update_not_applied(step: int, grad_norm: float, with_bad_loss: list[str], all_ids: list[str]) -> TrainingFault:
    """The update was skipped. A finite loss can have an overflowing gradient: then all samples are named."""
    place = f"of step {step + 1} is"
    what = f"a loss {place} not finite" if with_bad_loss else f"the gradient norm {place} {grad_norm}"
    return TrainingFault(
        f"{what}, and the update was not applied", where=_named(with_bad_loss or all_ids), fix=NONFINITE_FIX
    )


def zero_gradient(step: int, sample_ids: list[str]) -> TrainingFault:
    """Raised after the engine's step, in which momentum or weight decay may have changed weights."""
    return TrainingFault(
        f"the gradient norm of step {step + 1} is 0.0, though something was supervised",
        where=_named(sample_ids),
        fix="look at model.freeze, tuner and the weights of the losses under stage2_ab: nothing that is supervised"
        " reaches a weight that trains",
    )


def all_skipped(step: int, skipped: list[Skipped]) -> DataError:
    """Of a step without any sample left; `skipped` in the order of their draws."""
    return DataError(
        f"every sample of step {step + 1} was skipped; the first because {skipped[0].why}",
        where=_named([one.sample_id for one in skipped]),
        fix="look at the data: a step that learns nothing is none",
    )


def _named(ids: list[str]) -> str:
    """`samples a, b, c and 29 more`; empty if there is none."""
    if not ids:
        return ""
    rest = len(ids) - MAX_NAMED
    return "samples " + ", ".join(map(printable, ids[:MAX_NAMED])) + (f" and {rest} more" if rest > 0 else "")

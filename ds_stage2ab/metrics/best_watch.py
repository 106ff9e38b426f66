"""Which evaluation of a run is the best so far, and for how many there was none better. No torch."""

from collections.abc import Iterable, Mapping

from ds_stage2ab.metrics.journal import EvaluationRecord

AVERAGE_PRECISION = ("eval/ap_by_score", "eval/ap_by_probability", "eval/ap_unranked")
"""The names of `eval/ap`: its scores are known, or all equal."""


class BestWatch:
    """Follows one metric, of which more is better. The weights that a run begins with do not count.

    Args:
        metric: `checkpoint.keep_best`; None: nothing is followed.
        stop_after: `evaluation.stop_after`; None: the run goes to its last step.
        earlier: the evaluations of the run so far, in order.
    """

    def __init__(self, metric: str | None, stop_after: int | None, earlier: Iterable[EvaluationRecord] = ()) -> None:
        self.metric = metric
        self.stop_after = stop_after
        self.best_step: int | None = None
        # finished steps of the best evaluation
        self.best_value = 0.0
        self.worse = 0
        # evaluations since
        for one in earlier:
            self.after_evaluation(one.step, one.metrics)

    def after_evaluation(self, finished_steps: int, values: Mapping[str, float]) -> bool:
        """Whether this evaluation is the best so far."""
        value = value_of(self.metric, values) if self.metric and finished_steps else None
        if value is None:
            return False
        better = self.best_step is None or value > self.best_value
        if better:
            self.best_step, self.best_value, self.worse = finished_steps, value, 0
        else:
            self.worse += 1
        return better

    @property
    def is_over(self) -> bool:
        """Whether the run is done before its last step."""
        return self.stop_after is not None and self.worse >= self.stop_after

    def words(self) -> str:
        """Why it is done."""
        told = f"{self.metric} {self.best_value:.4f} after step {self.best_step:,}"
        return f"done: {told} is better than those of the {self.worse} evaluations since (evaluation.stop_after)"


def value_of(metric: str, values: Mapping[str, float]) -> float | None:
    """A metric among the figures of an evaluation; None where the set does not define it."""
    names = AVERAGE_PRECISION if metric == "eval/ap" else (metric,)
    return next((values[name] for name in names if name in values), None)

"""Warns when Channel B's rollouts become unhealthy, and ends the run if the config says so.

Invariants:
- A threshold acts after `patience` B steps in a row that cross it; steps of Channel A in between change nothing.
- It warns once, and again only after a B step that did not cross it.
- A missing figure (nothing was generated, nothing was true) crosses no threshold.
- It depends on the steps' summed terms alone, so all ranks warn and stop together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ds_stage2ab.config.sections import HealthSection, ThresholdSection
from ds_stage2ab.errors import TrainingFault
from ds_stage2ab.metrics.registry import reduce_terms

KEY = "stage2_ab.channel_b.health"
Values = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """The metrics that one key of the section watches."""

    key: str
    step: str
    # the metric of a B step, or a sum of metrics
    evaluation: str
    # the metric of an evaluation; empty: it has none
    above: bool
    # crossed when the figure is above the threshold, else when it is below
    remedy: str
    # after a B step
    remedy_of_evaluation: str
    # the same where it names no metric: an evaluation has others than a B step


MANY = (
    "set stage2_ab.channel_b.target to rewrite (with append a spurious object costs nothing), or lower"
    " stage2_ab.schedule.b_ratio"
)
CUT = "raise custom.extra.rollout_matching.max_new_tokens, or set a limit of repeat_terminate there"
FOREIGN = "compare data.codec and the prompts with those of stage 1"
UNSURE = "the model writes other tokens where coordinates belong: raise stage2_ab.coord_gate_weight"

FIGURES = (
    Figure(
        key="predicted_per_true",
        step="match/predicted_per_true",
        evaluation="eval/predicted_per_true",
        above=True,
        remedy=MANY,
        remedy_of_evaluation=MANY,
    ),
    Figure(
        key="truncation_rate",
        step="rollout/truncation_rate",
        evaluation="eval/truncation_rate",
        above=True,
        remedy=CUT,
        remedy_of_evaluation=CUT,
    ),
    Figure(
        key="drop_rate",
        step="rollout/values_dropped_rate",
        evaluation="eval/values_dropped_rate",
        above=True,
        remedy=f"the largest drop/ metric says why: {FOREIGN}",
        remedy_of_evaluation=f"the largest eval/drop_ metric says why: {FOREIGN}",
    ),
    Figure(
        key="valid_rate",
        step="parse/ok + parse/empty_answer",
        evaluation="eval/parse_ok_rate",
        above=False,
        remedy=f"the largest parse/ metric says why: {FOREIGN}",
        remedy_of_evaluation=f"look at eval/truncation_rate and eval/repeat_rate; if both are small, {FOREIGN}",
    ),
    Figure(
        key="coord_mass",
        step="coord/mass",
        evaluation="eval/coord_mass",
        above=False,
        remedy=UNSURE,
        remedy_of_evaluation=UNSURE,
    ),
)


class HealthWatch:
    """Watches the B steps of a run.

    Args:
        section: `stage2_ab.channel_b.health`.
    """

    def __init__(self, section: HealthSection) -> None:
        self._patience = section.patience
        self._thresholds: dict[str, ThresholdSection] = {name: getattr(section, name) for name in NAMES}
        self._streaks = {(name, act): 0 for name in NAMES for act in ("warn", "stop")}

    def streaks(self) -> dict[str, int]:
        """`figure/act` -> for how many B steps in a row its threshold has been crossed; for `start_at`."""
        return {f"{name}/{act}": streak for (name, act), streak in self._streaks.items()}

    def start_at(self, streaks: Mapping[str, int]) -> None:
        """Go on where another watch was."""
        self._streaks |= {key: streaks.get("/".join(key), 0) for key in self._streaks}

    def after_step(self, step: int, channel: str, terms: Mapping[str, tuple[float, float]]) -> list[str]:
        """The warnings after the step `step`, counted from 0.

        Args:
            terms: metric name -> (sum, count) over all ranks.

        Raises:
            TrainingFault: a `stop` threshold was crossed in `patience` B steps in a row.
        """
        if channel != "B":
            return []
        values = reduce_terms(terms)
        warnings = []
        for figure in FIGURES:
            value = _sum_of(figure.step.split(" + "), values)
            threshold = self._thresholds[figure.key]
            if self._lasts(figure, "stop", threshold.stop, value):
                raise TrainingFault(
                    self._words(figure.step, figure, threshold.stop, value),
                    where=f"step {step + 1}, {KEY}.{figure.key}.stop",
                    fix=figure.remedy,
                )
            if self._lasts(figure, "warn", threshold.warn, value) == self._patience:
                warnings.append(f"{self._words(figure.step, figure, threshold.warn, value)}; {figure.remedy}")
        return warnings

    def after_evaluation(self, values: Values) -> list[str]:
        """The warnings after an evaluation, whatever the patience; it never stops a run."""
        return [
            f"{figure.evaluation} is {value:.3g}, {_side(figure)} {limit:g}; {figure.remedy_of_evaluation}"
            for figure in FIGURES
            if (limit := self._thresholds[figure.key].warn) is not None
            and (value := values.get(figure.evaluation)) is not None
            and _crosses(figure, limit, value)
        ]

    def _lasts(self, figure: Figure, act: str, limit: float | None, value: float | None) -> int:
        """For how many B steps in a row the threshold has been crossed, if that is long enough; else 0."""
        crossed = limit is not None and value is not None and _crosses(figure, limit, value)
        streak = self._streaks[figure.key, act] + 1 if crossed else 0
        self._streaks[figure.key, act] = streak
        return streak if streak >= self._patience else 0

    def _words(self, metric: str, figure: Figure, limit: float, value: float) -> str:
        steps = "this B step" if self._patience == 1 else f"the last {self._patience} B steps"
        return f"{metric} was {_side(figure)} {limit:g} in {steps} (now {value:.3g})"


NAMES = tuple(figure.key for figure in FIGURES)


def _crosses(figure: Figure, limit: float, value: float) -> bool:
    return value > limit if figure.above else value < limit


def _side(figure: Figure) -> str:
    return "above" if figure.above else "below"


def _sum_of(names: list[str], values: Values) -> float | None:
    return sum(values[name] for name in names) if all(name in values for name in names) else None

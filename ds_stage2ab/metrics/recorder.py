"""From a `StepResult` to what every sink receives."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ds_stage2ab.carriers import StepResult
from ds_stage2ab.metrics.journal import EVALUATION_CHANNEL, EvaluationRecord, StepRecord
from ds_stage2ab.metrics.registry import check_channel, reduce_terms
from ds_stage2ab.metrics.servers import tell_of_changes
from ds_stage2ab.metrics.sinks import Sink

SLOTS_PER_OBJECT = 4  # coordinate tokens of a box: x1 y1 x2 y2


class Metrics:
    """Records steps and evaluations in all sinks. Ranks other than 0 construct it with no sinks.

    Args:
        sinks: where records go, in this order; closed by `close`.
        every_steps: logging interval; of each interval the first step of each channel is logged.
        channel_for_step: the schedule.
        clock: Unix seconds.
        attempt: which start of the run this is, from 1.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        every_steps: int,
        channel_for_step: Callable[[int], str],
        clock: Callable[[], float] = time.time,
        attempt: int = 1,
    ) -> None:
        assert every_steps > 0, f"every_steps must be positive, got {every_steps}"
        self._sinks = tuple(sinks)
        self._every_steps = every_steps
        self._channel_for_step = channel_for_step
        self._clock = clock
        self._attempt = attempt

    def record(self, step: int, channel: str, result: StepResult) -> None:
        """Report the optimizer step `step` (counted from 0) of channel "A" or "B".

        Logged are the first step, every `every_steps`-th, with them the next step of the other channel: these depend on
        the schedule alone. And each step that was not applied, that skipped samples, or in which a rollout server was
        lost or came back.
        """
        finished = step + 1
        odd = not result.applied or result.skipped or tell_of_changes(result.terms)
        due = self._is_first_of_its_channel(step, channel) or odd
        if not due or not self._sinks:
            return
        metrics = step_values(result)
        check_channel(metrics, channel)
        record = StepRecord(
            step=finished,
            channel=channel,
            applied=result.applied,
            metrics=metrics,
            skipped=tuple(one.sample_id for one in result.skipped),
            wall_time=self._clock(),
            attempt=self._attempt,
        )
        for sink in self._sinks:
            sink.step(record)

    def _is_first_of_its_channel(self, step: int, channel: str) -> bool:
        """Whether no earlier step of the logging interval was of this channel; intervals begin at each multiple."""
        begin = (step + 1) - (step + 1) % self._every_steps
        return all(self._channel_for_step(finished - 1) != channel for finished in range(max(1, begin), step + 1))

    def record_evaluation(self, finished_steps: int, values: Mapping[str, float]) -> None:
        """Report an evaluation of the weights after `finished_steps` steps (0: before the first).

        Args:
            values: `eval/...` name -> value over the whole held-out set, all ranks.
        """
        if not self._sinks:
            return
        metrics = {name: _plain(value) for name, value in values.items()}
        check_channel(metrics, EVALUATION_CHANNEL)
        record = EvaluationRecord(
            step=finished_steps, metrics=metrics, wall_time=self._clock(), attempt=self._attempt
        )
        for sink in self._sinks:
            sink.evaluation(record)

    def record_pictures(self, finished_steps: int, files: Sequence[Path]) -> None:
        """Report the pictures of an evaluation."""
        for sink in self._sinks:
            sink.pictures(finished_steps, files)

    def warn(self, text: str) -> None:
        """Send a warning to every sink."""
        for sink in self._sinks:
            sink.warning(text)

    def close(self) -> None:
        """Close every sink."""
        for sink in self._sinks:
            sink.close()


def step_values(result: StepResult) -> dict[str, float]:
    """All metrics of a step: `loss/total` is `result.loss`, the mean over the raw samples of the step."""
    values = reduce_terms(result.terms)
    values["loss/total"] = result.loss
    values["train/grad_norm"] = result.grad_norm
    values["train/learning_rate"] = result.learning_rate
    values["train/samples"] = result.samples
    values["train/skipped_samples"] = len(result.skipped)
    values["train/tokens"] = result.tokens
    values["train/objects"] = int(result.terms["coord/mass"][1]) // SLOTS_PER_OBJECT
    values["train/packs"] = result.packs
    values["train/applied"] = int(result.applied)
    values.update({f"time/{phase}_s": seconds for phase, seconds in result.seconds.items()})
    seconds = result.seconds["step"]
    if seconds > 0:
        values["train/tokens_per_second"] = result.tokens / seconds
    if "rollout" in result.seconds and result.seconds["rollout"] > 0:
        values["rollout/tokens_per_second"] = values["rollout/tokens"] / result.seconds["rollout"]
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: float) -> float:
    """A Python number: NumPy and torch scalars become floats, integers stay integers."""
    return value if isinstance(value, int) else float(value)

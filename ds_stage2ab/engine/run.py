"""A run that is ready to loop: what the loop calls, and what it reports of each step."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from ds_stage2ab.carriers import StepResult
from ds_stage2ab.engine.checkpoint import Checkpoints
from ds_stage2ab.engine.export import UNWRITABLE
from ds_stage2ab.engine.run_folder import RunFolder
from ds_stage2ab.engine.window import Channel, Window
from ds_stage2ab.errors import printable
from ds_stage2ab.metrics.best_watch import BestWatch
from ds_stage2ab.metrics.health_watch import HealthWatch
from ds_stage2ab.metrics.recorder import Metrics
from ds_stage2ab.metrics.servers import FleetChanges, idle_seconds, server_terms
from ds_stage2ab.plan import RunPlan
from ds_stage2ab.runtime.memory import peak_gib
from ds_stage2ab.runtime.ranks import World

MAX_SKIPPED_TOLD = 3
"""Skipped samples of a step whose reason is printed; `metrics.jsonl` names all of them."""

ROLLOUTS = "B"
"""The channel that uses the servers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything that the loop uses."""

    plan: RunPlan
    folder: RunFolder
    world: World
    window: Window
    channels: dict[str, Channel]
    metrics: Metrics
    health: HealthWatch
    best: BestWatch
    evaluate: Callable[[int], dict[str, float]] | None
    # finished steps -> held-out figures; None without validation data
    verify_weights: Callable[[int], None]
    # that the rollouts' backend has those of so many finished steps
    settle: Callable[..., FleetChanges | None]
    # what has changed among the rollout servers; see `rollout.base.RolloutBackend`
    stop_reading: Callable[[], None]
    # ends the processes that read samples
    checkpoints: Checkpoints
    facts: dict[str, Any]
    # config, data, code and ranks of this run, as plain values
    first_step: int
    # 0, or how many steps the checkpoint had finished that the run goes on from
    first_evaluation: bool
    # whether the weights that it begins with are evaluated
    opening: tuple[tuple[str, str], ...]
    # what the opening lines say: (what, value)

    def record(self, step: int, channel: str, result: StepResult) -> None:
        """Report a step; a disk that is full on rank 0 is every rank's failure.

        Raises:
            TrainingFault: the rollouts of Channel B have become what the config says to stop for.
        """
        changes = self.tell_of_servers(counts=True) if channel == ROLLOUTS else None
        if changes is not None:
            seconds = {**result.seconds, **idle_seconds(changes, result.seconds)}
            result = replace(result, terms={**result.terms, **server_terms(changes)}, seconds=seconds)
        with self.world.finishing(), self.world.raise_together("recording the metrics"):
            self.metrics.record(step, channel, result)
        if result.fault:
            self.metrics.warn(result.fault)
        for one in result.skipped[:MAX_SKIPPED_TOLD]:
            self.metrics.warn(f"step {step + 1} skipped sample {printable(one.sample_id)}: {one.why}")
        for warning in self.health.after_step(step, channel, result.terms):
            self.metrics.warn(warning)

    def record_evaluation(self, finished_steps: int, values: dict[str, float]) -> None:
        """Report an evaluation, as `record` does."""
        self.tell_of_servers()
        with self.world.finishing(), self.world.raise_together("recording the metrics"):
            self.metrics.record_evaluation(finished_steps, values)
        for warning in self.health.after_evaluation(values):
            self.metrics.warn(warning)

        if self.best.after_evaluation(finished_steps, values):
            self.save_finished()
            with self.world.finishing():
                self.checkpoints.keep_best(finished_steps)

    def tell_of_servers(self, *, counts: bool = False) -> FleetChanges | None:
        """Warn of each change among the rollout servers; collective.

        Args:
            counts: whether a step has ended, whose metrics count them.
        """
        with self.world.finishing():
            changes = self.settle(counts=counts)
        for warning in changes.warnings if changes is not None else ():
            self.metrics.warn(warning)
        return changes

    def save(self, finished_steps: int, *, must: bool = False) -> None:
        """Write a checkpoint; see `Checkpoints.save`."""
        progress = {"bad_steps": self.window.bad_steps, "health": self.health.streaks(), "facts": self.facts}
        with self.world.finishing():
            self.checkpoints.save(finished_steps, progress, self.window.random, must=must)

    def save_finished(self) -> None:
        """Save the last finished step, if no checkpoint holds it: the weights are good even where the run failed.

        Returns when it is complete on the disk.
        """
        finished = self.window.finished_steps
        if finished > self.checkpoints.newest:
            self.save(finished, must=True)
        with self.world.finishing():
            self.checkpoints.settle(must=True)

    def note_memory(self) -> None:
        """Write the peak memory of the rank that took most; collective."""
        peak = max(self.world.gather(peak_gib(self.world.device)))
        with self.world.finishing(), self.world.raise_together("writing the peak memory"):
            if self.world.rank == 0:
                self.folder.add_to_environment(peak_memory_gib=round(peak, 2))

    def leave(self) -> None:
        """Wait for the other ranks, to end together: the launcher passes on an exit code that all of them have."""
        with self.world.finishing(), self.world.raise_together("leaving"):
            if self.world.stop is not None:
                self.world.stop.leaving = True

    def close(self) -> None:
        """Close what is open, whatever happened in the loop."""
        try:
            self.metrics.close()
            self.stop_reading()
        finally:
            with suppress(*UNWRITABLE):  # the run ends for another reason, or has settled
                self.checkpoints.publisher.settle()
            self.folder.release()

"""The window: DeepSpeed's accumulation counter decides when a step ends, and a step is one update.

Raw samples are collected on each micro-step. On the micro-step for which the engine says boundary, everything
runs: segments, packs, one forward and backward per pack, exactly one `engine.step()`.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from ds_stage2ab.carriers import Pack, Sample, Segment, Skipped, StepResult
from ds_stage2ab.engine.memory_fault import SMALLER_PACKS, SMALLER_ROLLOUTS, SMALLER_UPDATE, memory_explained
from ds_stage2ab.engine.step_faults import all_skipped, nonfinite_loss, update_not_applied, zero_gradient
from ds_stage2ab.engine.step_samples import KEPT, SAMPLES, TOKENS_AND_PACKS, StepSamples, Term
from ds_stage2ab.engine.training_state import random_state
from ds_stage2ab.errors import EnvironmentFault, NoServerLeft
from ds_stage2ab.losses.objective import TERM_NAMES
from ds_stage2ab.packs.collate import dummy_pack, make_packs
from ds_stage2ab.packs.rounds import NUM_FLAGS, synchronized_rounds
from ds_stage2ab.plan import RunPlan
from ds_stage2ab.runtime.ranks import Agreement, World
from ds_stage2ab.runtime.timers import Clock


class Channel(Protocol):
    """What a channel is to the window."""

    name: str
    num_passes: int
    streams: bool
    # segments come one by one, and packs are trained in the meantime
    term_names: tuple[str, ...]
    # what it reports of every sample

    def segments(
        self, samples: list[Sample], step: int, clock: Clock
    ) -> Iterator[Segment | Skipped | NoServerLeft]: ...

    def recover(self, step: int) -> None:
        """After a NoServerLeft of any rank; collective. A channel that does not stream has none."""
        ...


class Window:
    """Runs steps on a DeepSpeed engine.

    Args:
        engine: wraps the objective.
        plan: every number of the run.
        world: the learner ranks.
        draw: (step, micro-step) -> this rank's raw samples.
        dummy_segment: what a rank that has no pack left runs as a dummy pack (times 0) while others have one.
    """

    def __init__(
        self,
        engine: object,
        plan: RunPlan,
        world: World,
        draw: Callable[[int, int], list[Sample | Skipped]],
        dummy_segment: Segment,
    ) -> None:
        self.engine = engine
        self.plan = plan
        self.world = world
        self.draw = draw
        self.dummy_segment = dummy_segment
        self.bad_steps = 0  # in a row, up to now
        self.updates_left_out = 0  # of the engine's own count of steps
        self.random: dict[str, torch.Tensor] | None = None  # this rank's random state after the last finished step

    def run(self, step: int, channel: Channel) -> StepResult:
        """One optimizer step: R raw samples over all ranks, one update.

        Raises:
            DataError: a sample cannot be read, or is longer than the cap, or every sample was skipped.
            TrainingFault: a loss or gradient is not finite, or the engine did not apply the update.
        """
        clock, start = Clock(), time.monotonic()
        self.random = random_state(self.world.device)
        with clock("data"):
            samples = StepSamples(self._collect_samples(step), channel.term_names)
        self._accumulate(step, channel, samples, clock)
        samples.assert_used_once()
        with clock("optimizer"):
            sums = self._summed(samples.sums())
            skipped = self._skipped(samples, step, kept=sums[KEPT][0])
            learning_rate, grad_norm = self._update(step)
            fault = self._judge(step, grad_norm, samples, supervised=sums[KEPT][1] > 0)
        self.random = random_state(self.world.device)
        seconds = {**clock.seconds, **self._slowest(clock), "step": time.monotonic() - start}
        return self._result(
            sums, skipped=skipped, fault=fault, learning_rate=learning_rate, grad_norm=grad_norm, seconds=seconds
        )

    def start_at(self, finished_steps: int, bad_steps: int) -> None:
        """Go on after so many steps, the last `bad_steps` of them without an update."""
        self.engine.global_steps = finished_steps
        self.bad_steps = bad_steps

    @property
    def finished_steps(self) -> int:
        """Steps that are done, those without an update among them."""
        return self.engine.global_steps + self.updates_left_out

    def _collect_samples(self, step: int) -> list[Sample | Skipped]:
        """Raw samples of every micro-step up to the engine's own boundary.

        Short of the boundary `engine.step()` applies nothing: it only advances the engine's count of micro-steps.
        """
        drawn: list[Sample | Skipped] = []
        with self.world.raise_together(f"reading the samples of step {step + 1}"):
            for micro_step in range(self.plan.accumulation_steps):
                drawn += self.draw(step, micro_step)
                if self.engine.is_gradient_accumulation_boundary():
                    break
                self.engine.step()
        assert micro_step == self.plan.accumulation_steps - 1, "the engine's window and the plan disagree"
        return drawn

    def _accumulate(self, step: int, channel: Channel, samples: StepSamples, clock: Clock) -> None:
        """Forward and backward of every pack; `samples` gets the losses."""
        rounds = synchronized_rounds(
            self._packs(step, channel, samples, clock),
            lambda: dummy_pack(self.dummy_segment, num_passes=channel.num_passes),
            lambda: self._round(step, samples),
            lambda: self._recover(step, channel, clock),
        )
        totals = torch.zeros(len(TERM_NAMES), 2, dtype=torch.float64, device=self.world.device)
        while True:
            with clock("wait"):
                pack, last = next(rounds, (None, True))
            if pack is None:
                break
            with clock("forward_backward"):
                loss, terms = self._forward_backward(step, pack, last)
            totals += torch.stack([torch.stack(terms[name]) for name in TERM_NAMES])
            samples.note_loss(pack, loss)
        samples.losses = dict(zip(TERM_NAMES, map(tuple, totals.tolist()), strict=True))

    def _recover(self, step: int, channel: Channel, clock: Clock) -> None:
        with clock("rollout"):
            channel.recover(step)

    @contextmanager
    def _round(self, step: int, samples: StepSamples) -> Iterator[Agreement]:
        """Where the ranks synchronise between two packs, and raise a loss that is not finite if none is tolerated.

        A rank that raised it at once would leave the others waiting in a collective.
        """
        with self.world.raise_together(f"getting the segments of step {step + 1}", num_flags=NUM_FLAGS) as agreed:
            if samples.nonfinite_loss is not None and self.bad_steps >= self.plan.max_bad_steps:
                raise nonfinite_loss(step, samples.nonfinite_ids, samples.nonfinite_loss)
            yield agreed

    def _packs(
        self, step: int, channel: Channel, samples: StepSamples, clock: Clock
    ) -> Iterator[tuple[Pack, bool] | NoServerLeft]:
        """This rank's (pack, whether it is its last)."""
        packs = make_packs(
            samples.segments(channel.segments(samples.samples, step, clock)),
            capacity=self.plan.global_max_length,
            packing=self.plan.packing,
            online=channel.streams,
            num_passes=channel.num_passes,
        )
        oom_message = f"out of memory in step {step + 1}, getting the segments of Channel {channel.name}"
        while True:
            explained = memory_explained(oom_message, self.plan, fix=SMALLER_ROLLOUTS, fault=EnvironmentFault)
            with clock("segments"), explained:
                coming = next(packs, None)
            if coming is None:
                return
            if not isinstance(coming, NoServerLeft):
                samples.count(coming[0])
            yield coming

    def _forward_backward(self, step: int, pack: Pack, last: bool) -> tuple[float, dict[str, tuple]]:
        """One forward and backward; a loss that is not finite makes every gradient NaN, so that no rank applies it."""
        scale = self.world.size / self.plan.effective_batch_size
        self.engine.set_gradient_accumulation_boundary(last)
        self.world.set_status(f"forward and backward of step {step + 1}")
        oom_message = f"{self._oom_message(step)}, in a pack of {len(pack.input_ids)} tokens"
        with self.world.collective(), memory_explained(oom_message, self.plan, fix=SMALLER_PACKS):
            loss, terms = self.engine(pack.to(self.world.device))
            value = loss.item()
            # A new tensor, not forward's own output: ZeRO 0 would divide that by the accumulation steps.
            self.engine.backward(loss * (scale if math.isfinite(value) else math.nan), scale_wrt_gas=False)
        return value, terms

    def _oom_message(self, step: int) -> str:
        """Of a rank that cannot tell the others: it may be alone in a collective of the engine's."""
        return f"rank {self.world.rank} is out of memory in step {step + 1}"

    def _summed(self, own: dict[str, Term]) -> dict[str, Term]:
        """(sum, count) of the same names on every rank -> over all ranks."""
        flat = torch.tensor([number for name in sorted(own) for number in own[name]], dtype=torch.float64)
        totals = self.world.all_reduce_sum(flat).view(-1, 2).tolist()
        return dict(zip(sorted(own), map(tuple, totals), strict=True))

    def _skipped(self, samples: StepSamples, step: int, *, kept: float) -> tuple[Skipped, ...]:
        """The skipped samples of all ranks.

        Raises:
            DataError: they are all samples of the step.
        """
        if kept == self.plan.effective_batch_size:
            return ()
        gathered = self.world.gather(samples.skipped)
        skipped = sorted((one for part in gathered for one in part), key=lambda one: one.draw)
        if not kept:
            raise all_skipped(step, skipped)
        return tuple(skipped)

    def _update(self, step: int) -> tuple[float, float]:
        """One `engine.step()` at this step's learning rate; returns (learning rate, gradient norm).

        The norm is not finite if no update was applied. Stage 0 in fp32 checks nothing itself and would write a
        non-finite update, so there the norm is known first.
        """
        self.world.set_status(f"the update of step {step + 1}")
        learning_rate = self.plan.learning_rate(step)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        own_norm = self._own_grad_norm() if self.engine.zero_optimization_stage() == 0 else None
        if own_norm is not None and not math.isfinite(own_norm):
            self._leave_update_out()
            return learning_rate, own_norm
        skipped_before = self.engine.skipped_steps
        oom_message = f"{self._oom_message(step)}, in the update"
        with self.world.collective(), memory_explained(oom_message, self.plan, fix=SMALLER_UPDATE):
            self.engine.step()
        self.engine.set_gradient_accumulation_boundary(None)
        if not self.engine.was_step_applied() or self.engine.skipped_steps != skipped_before:
            return learning_rate, math.inf
        assert self.finished_steps == step + 1, "the engine's step counter and the loop disagree"
        return learning_rate, own_norm if own_norm is not None else float(self.engine.get_global_grad_norm())

    def _leave_update_out(self) -> None:
        """End the window without an update: as if it were no boundary the engine only counts the micro-step."""
        self.engine.set_gradient_accumulation_boundary(False)
        self.engine.step()
        self.engine.set_gradient_accumulation_boundary(None)
        self.engine.zero_grad()
        self.updates_left_out += 1

    def _own_grad_norm(self) -> float:
        """L2 norm over all gradients, which at stage 0 are already averaged over the ranks."""
        gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def _judge(self, step: int, grad_norm: float, samples: StepSamples, *, supervised: bool) -> str:
        """Why the step was not applied, in words; empty if it was. Every rank sees the same norm, and does the same.

        Raises:
            TrainingFault: too many such steps in a row, or a gradient of zero though something was supervised.
        """
        if math.isfinite(grad_norm) and (grad_norm > 0 or not supervised):
            self.bad_steps = 0
            return ""
        gathered = self.world.gather((samples.nonfinite_ids, samples.packed_ids))
        with_bad_loss, all_ids = ([name for part in gathered for name in part[kind]] for kind in (0, 1))
        if grad_norm == 0:
            raise zero_gradient(step, all_ids)
        fault = update_not_applied(step, grad_norm, with_bad_loss, all_ids)
        self.bad_steps += 1
        if self.bad_steps > self.plan.max_bad_steps:
            raise fault
        return f"{fault.why} ({fault.where})"

    def _slowest(self, clock: Clock) -> dict[str, float]:
        """The seconds of rollouts, if the channel draws them, are those of the slowest rank: it sets the pace."""
        if "rollout" not in clock.seconds:
            return {}
        (microseconds,) = self.world.all_reduce_max(round(clock.seconds["rollout"] * 1e6))
        return {"rollout": microseconds / 1e6}

    def _result(
        self,
        sums: dict[str, Term],
        *,
        skipped: tuple[Skipped, ...],
        fault: str,
        learning_rate: float,
        grad_norm: float,
        seconds: dict[str, float],
    ) -> StepResult:
        (samples, _), _, (tokens, packs) = (sums.pop(name) for name in (SAMPLES, KEPT, TOKENS_AND_PACKS))
        assert int(samples) == self.plan.effective_batch_size, "a step owns exactly R raw samples"
        return StepResult(
            applied=not fault,
            fault=fault,
            loss=sums["loss/total"][0] / self.plan.effective_batch_size,
            terms=sums,
            skipped=skipped,
            samples=int(samples),
            tokens=int(tokens),
            packs=int(packs),
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            seconds=seconds,
        )

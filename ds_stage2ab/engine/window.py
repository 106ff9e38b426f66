"""The window: DeepSpeed's accumulation counter decides when a step ends, and a step is one update.

Raw samples are buffered on each micro-step. On the micro-step for which the engine says boundary, everything
runs: segments, packs, one forward and backward per pack, exactly one `engine.step()`.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from ds_stage2ab.carriers import Pack, Sample, Segment, StepResult
from ds_stage2ab.errors import TrainingFault
from ds_stage2ab.losses.objective import TERM_NAMES
from ds_stage2ab.packs.collate import make_packs, zero_weight
from ds_stage2ab.packs.rounds import in_lockstep
from ds_stage2ab.plan import RunPlan
from ds_stage2ab.world import World


class Channel(Protocol):
    """What a channel is to the window."""

    name: str
    num_passes: int

    def segments(self, samples: list[Sample], step: int) -> list[Segment]: ...


class Window:
    """Runs steps on a DeepSpeed engine.

    Args:
        engine: wraps the objective.
        plan: every number of the run.
        world: the learner ranks.
        draw: (step, micro-step) -> this rank's raw samples.
    """

    def __init__(
        self, engine: object, plan: RunPlan, world: World, draw: Callable[[int, int], list[Sample]]
    ) -> None:
        self.engine = engine
        self.plan = plan
        self.world = world
        self.draw = draw

    def run(self, step: int, channel: Channel) -> StepResult:
        """One optimizer step: R raw samples over all ranks, one update.

        Raises:
            TrainingFault: a loss or gradient is not finite, or the engine did not apply the update.
        """
        clock = _Clock()
        with clock("data"):
            samples = self._buffer(step)
        with clock("segments"), self.world.agree_on_failure():
            segments = channel.segments(samples, step)
            packs = make_packs(
                segments,
                capacity=self.plan.global_max_length,
                packing=self.plan.packing,
                num_passes=channel.num_passes,
            )
        with clock("forward_backward"):
            local = self._accumulate(step, packs, lambda: zero_weight(segments[0], num_passes=channel.num_passes))
        with clock("optimizer"):
            learning_rate, grad_norm = self._update(step, samples)
        clock.seconds["step"] = sum(clock.seconds.values())
        sums = self.world.all_sum(torch.cat([local, torch.tensor([len(samples), *_sizes(packs)]).double()]))
        return self._result(sums, learning_rate=learning_rate, grad_norm=grad_norm, seconds=clock.seconds)

    def _buffer(self, step: int) -> list[Sample]:
        """Raw samples of every micro-step up to the engine's own boundary."""
        samples: list[Sample] = []
        for micro_step in range(self.plan.accumulation_steps):
            with self.world.agree_on_failure():
                samples += self.draw(step, micro_step)
            if self.engine.is_gradient_accumulation_boundary():
                break
            self.engine.step()
        assert micro_step == self.plan.accumulation_steps - 1, "the engine's window and the plan disagree"
        return samples

    def _accumulate(self, step: int, packs: list[Pack], stand_in: Callable[[], Pack]) -> torch.Tensor:
        """Forward and backward of every pack; returns this rank's (sum, count) of each term: [2 * terms]."""
        scale = self.world.size / self.plan.effective_batch_size
        totals = torch.zeros(len(TERM_NAMES), 2, dtype=torch.float64)
        for pack, last in in_lockstep(packs, stand_in, self.world.all_max):
            self.engine.set_gradient_accumulation_boundary(last)
            loss, terms = self.engine(pack.to(self.world.device))
            self._refuse_non_finite(step, pack, loss)
            # A new tensor, not forward's own output: ZeRO 0 would divide that by the accumulation steps.
            self.engine.backward(loss * scale, scale_wrt_gas=False)
            totals += torch.stack([torch.stack(terms[name]) for name in TERM_NAMES]).cpu()
        return totals.flatten()

    def _refuse_non_finite(self, step: int, pack: Pack, loss: torch.Tensor) -> None:
        bad = not math.isfinite(loss.item())
        if not self.world.all_max(int(bad)):
            return
        named = [ids for ids in self.world.gather(pack.sample_ids if bad else ()) if ids]
        raise TrainingFault(
            f"the loss of step {step + 1} is not finite; no weight was changed by this step",
            where=f"samples {', '.join(name for ids in named for name in ids)}",
            fix="lower training.learning_rate, or look at these samples",
        )

    def _update(self, step: int, samples: list[Sample]) -> tuple[float, float]:
        """One `engine.step()` at this step's learning rate; returns (learning rate, gradient norm)."""
        learning_rate = self.plan.learning_rate(step)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        own_norm = self._own_grad_norm() if self.engine.zero_optimization_stage() == 0 else None
        if own_norm is not None and not math.isfinite(own_norm):
            self._refuse_update(step, own_norm, samples)
        skipped_before = self.engine.skipped_steps
        self.engine.step()
        self.engine.set_gradient_accumulation_boundary(None)
        grad_norm = own_norm if own_norm is not None else float(self.engine.get_global_grad_norm())
        applied = self.engine.was_step_applied() and self.engine.skipped_steps == skipped_before
        if not applied or not math.isfinite(grad_norm):
            self._refuse_update(step, grad_norm, samples)
        assert self.engine.global_steps == step + 1, "the engine's step counter and the loop disagree"
        return learning_rate, grad_norm

    def _own_grad_norm(self) -> float:
        """L2 norm over all gradients, already averaged over the ranks; stage 0 in fp32 checks nothing itself."""
        gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def _refuse_update(self, step: int, grad_norm: float, samples: list[Sample]) -> None:
        first, last = samples[0].draw, samples[-1].draw
        raise TrainingFault(
            f"the update of step {step + 1} was not applied, its gradient norm is {grad_norm}",
            where=f"raw samples {first}..{last} of this rank, first {samples[0].id}",
            fix="lower training.learning_rate, or set deepspeed.gradient_clipping",
        )

    def _result(
        self, sums: torch.Tensor, *, learning_rate: float, grad_norm: float, seconds: dict[str, float]
    ) -> StepResult:
        *flat, samples, tokens, packs = sums.tolist()
        pairs = list(zip(flat[0::2], flat[1::2], strict=True))
        terms = dict(zip(TERM_NAMES, pairs, strict=True))
        assert int(samples) == self.plan.effective_batch_size, "a step owns exactly R raw samples"
        return StepResult(
            applied=True,
            loss=terms["loss/total"][0] / self.plan.effective_batch_size,
            terms=terms,
            skipped=(),
            samples=int(samples),
            tokens=int(tokens),
            packs=int(packs),
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            seconds=seconds,
        )


def _sizes(packs: list[Pack]) -> tuple[int, int]:
    return sum(len(pack.input_ids) for pack in packs), len(packs)


class _Clock:
    """Wall seconds by phase, monotonic."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[phase] = time.monotonic() - start

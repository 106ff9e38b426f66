"""Config + topology + number of records -> every number of a run, decided once. No torch.

Invariants:
- R = p W G exactly, or no plan exists;
- steps_per_epoch x R = num_records_used <= num_records < num_records_used + R;
- total_steps >= 1, and no step is ever half-run;
- the learning rate and the channel are functions of the step number alone, so a resumed run agrees;
- evaluation (if there is validation data) and saving are due at the last step, whatever their interval;
- DeepSpeed's batch keys and its gradient clipping are always written;
- a key of the rollout servers that may be left to the program is decided here, and only here.

`request_window`, `server_slots` and `split_requests` are those of `config.servers`, which the rules use too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from ds_stage2ab.config.batch import EFFECTIVE, BatchShape, counted, shape_batch
from ds_stage2ab.config.sections import (
    NO_OFFLOAD,
    Config,
    DeepSpeedSection,
    EvaluationSection,
    ModelSection,
    RolloutMatchingSection,
    TrainingSection,
)
from ds_stage2ab.config.servers import INFER_TIMEOUT, SERVERS, is_loopback, request_window, server_slots, split_requests
from ds_stage2ab.errors import ConfigError
from ds_stage2ab.schedule import channel_for_step

__all__ = [
    "Cadence",
    "LearningRate",
    "RunPlan",
    "batch_shape",
    "deepspeed_config",
    "make_plan",
    "records_fill_a_step",
    "request_window",
    "runnable_zero_stage",
    "server_slots",
    "split_requests",
    "steps_in_epochs",
]

SLOWEST_TOKENS_PER_SECOND = 2.0  # a server that draws a rollout more slowly than this is taken to have failed
SHORTEST_WAIT_S = 60.0  # for a rollout, however short: requests before it may be in the server's queue
WRAP = "wrap"  # of data.epoch_end
PROBE_TOLERANCE = {"fp32": 1e-3, "bf16": 0.05}  # mean absolute difference of log-probabilities, nats per token

NEVER_PRINT = 2**31 - 1  # DeepSpeed's own progress lines: the metrics say more


@dataclass(frozen=True, slots=True, kw_only=True)
class Cadence:
    """When something is done that happens every so often and at the end."""

    enabled: bool
    at_start: bool
    # also once before the first step
    every_steps: int | None
    # None: at the end only
    total_steps: int | None
    # None: not known, and the end with it

    def due(self, step: int) -> bool:
        """Whether it is due after this step (counted from 0) has finished."""
        finished = step + 1
        on_interval = self.every_steps is not None and finished % self.every_steps == 0
        return self.enabled and (on_interval or finished == self.total_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRate:
    """Linear warm-up, then constant, linear or cosine."""

    peak: float
    schedule: str
    warmup_steps: int
    final_ratio: float
    # of the peak, reached when all steps are done
    total_steps: int | None
    # None: not known

    def at(self, step: int) -> float:
        """The learning rate of a step, counted from 0; the number of steps must be known.

        Warm-up: peak (step + 1) / warmup_steps. After it, with x in [0, 1) the share of the remaining steps that is
        done: peak (r + (1 - r) f(x)), f(x) = 1 - x (linear) or (1 + cos(pi x)) / 2 (cosine), r the final ratio.
        """
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.peak
        done = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        left = 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.peak * (self.final_ratio + (1 - self.final_ratio) * left)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """Every number that more than one part of a run needs.

    What depends on the number of records is None where that is not known: before a run, never in one.
    """

    learners: int
    # W: learner ranks
    effective_batch_size: int
    # R: raw samples per step, over all ranks
    per_device: int
    # p: raw samples per rank and micro-step
    accumulation_steps: int
    # G: micro-steps per step
    samples_per_rank: int
    # R / W
    batch_sentence: str
    # `32 samples per step = 4 per rank x 2 ranks x 4 micro-steps`
    total_steps: int | None
    # None only if the records are not known and max_steps does not say it
    steps_per_epoch: int | None
    num_records_used: int | None
    # per epoch: the largest multiple of R, or all where epochs wrap
    epochs: float | None
    # passes over the records used
    packing: bool
    global_max_length: int
    # tokens
    max_bad_steps: int
    # in a row, before the run ends
    zero_stage: int
    # the one that is run; see `warnings` if the config names another
    deepspeed_config: dict
    b_ratio: Fraction
    b_steps: int | None
    # steps of the run that train Channel B: floor(total_steps b)
    server_replicas: tuple[int, ...] | None
    # per server; None: the learners draw the rollouts themselves, or nobody has asked the servers yet
    request_window: int | None
    # rollout requests that every rank may have in flight at least; None with `server_replicas`
    infer_timeout_s: float
    # longest wait for the answer to one rollout request, seconds
    probe_tolerance: float
    # nats per token
    sync_mode: str
    # what a weight transfer sends: `full`
    rate: LearningRate
    evaluate: Cadence
    save: Cadence
    warnings: tuple[str, ...]

    def channel_for_step(self, step: int) -> Literal["A", "B"]:
        return channel_for_step(step, self.b_ratio)

    def learning_rate(self, step: int) -> float:
        return self.rate.at(step)


def make_plan(
    config: Config, learners: int, num_records: int | None, server_replicas: Sequence[int] | None = None
) -> RunPlan:
    """Decide every number of a run.

    Args:
        config: a loaded config.
        learners: number of learner ranks, W.
        num_records: number of training records; None: not known, which a run cannot start with.
        server_replicas: of each rollout server; None: not asked yet. Of no effect with the backend `hf`.

    Raises:
        ConfigError: the batch sizes do not fit each other (rules 1 and 2), the servers cannot feed every rank
            (rule 3), or the records fill no step (rule 6).
    """
    training, rollouts = config.training, config.rollout_matching
    shape = batch_shape(training, learners)
    size = shape.effective_batch_size
    steps_per_epoch = None if num_records is None else records_fill_a_step(num_records, size)
    wraps = config.data.epoch_end == WRAP
    used = num_records if wraps or steps_per_epoch is None else steps_per_epoch * size
    total_steps = _total_steps(training, None if used is None else Fraction(used, size))
    stage, stage_warnings = runnable_zero_stage(config.model.precision, config.deepspeed.zero_stage)
    replicas = tuple(server_replicas) if server_replicas and rollouts.rollout_backend == "vllm" else None
    return RunPlan(
        learners=learners,
        effective_batch_size=size,
        per_device=shape.per_device,
        accumulation_steps=shape.accumulation_steps,
        samples_per_rank=shape.samples_per_rank,
        batch_sentence=shape.sentence,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        num_records_used=used,
        epochs=None if used is None else total_steps * size / used,
        packing=training.packing,
        global_max_length=training.global_max_length,
        max_bad_steps=training.max_bad_steps,
        zero_stage=stage,
        deepspeed_config=deepspeed_config(shape, config.model, config.deepspeed, stage),
        b_ratio=config.stage2_ab.schedule.b_ratio,
        b_steps=None if total_steps is None else math.floor(total_steps * config.stage2_ab.schedule.b_ratio),
        server_replicas=replicas,
        request_window=None if replicas is None else request_window(rollouts.decode_batch_size, replicas, learners),
        infer_timeout_s=rollout_timeout_s(rollouts.vllm.server.infer_timeout_s, rollouts.max_new_tokens),
        probe_tolerance=rollouts.vllm.probe.tolerance or PROBE_TOLERANCE[config.model.precision],
        sync_mode=transfer_mode(rollouts.vllm.sync.mode),
        rate=_rate(training, total_steps),
        evaluate=_evaluate(config.evaluation, config.data.validation is not None, total_steps),
        save=Cadence(enabled=True, at_start=False, every_steps=config.checkpoint.every_steps, total_steps=total_steps),
        warnings=(
            *stage_warnings,
            *_warmup_warnings(training.warmup_steps, total_steps),
            *_ratio_warnings(config.stage2_ab.schedule.b_ratio, total_steps),
            *_server_warnings(rollouts),
            *(_patience_warnings(rollouts, config.deepspeed.collective_timeout_s) if learners > 1 else ()),
        ),
    )


def batch_shape(training: TrainingSection, learners: int) -> BatchShape:
    """Rules 1 and 2 for a number of learner ranks.

    Raises:
        ConfigError: the batch sizes do not fit each other.
    """
    return shape_batch(
        effective_batch_size=training.effective_batch_size,
        per_device=training.per_device_train_batch_size,
        accumulation=training.gradient_accumulation_steps,
        learners=learners,
    )


def records_fill_a_step(num_records: int, effective_batch_size: int) -> int:
    """Rule 6: the number of whole steps in one pass over the records, which must be one at least.

    Raises:
        ConfigError: there are fewer records than one step takes.
    """
    steps = num_records // effective_batch_size
    if steps == 0:
        raise ConfigError(
            f"one step takes {effective_batch_size} samples, and data.train holds {counted(num_records, 'record')}",
            where=EFFECTIVE,
            fix=f"lower {EFFECTIVE} to {num_records} or less, or give more records",
        )
    return steps


def steps_in_epochs(num_epochs: float, steps_per_epoch: Fraction) -> int:
    """The whole steps in so many epochs, the decimal taken as written: 0.29 of 100 steps are 29.

    Args:
        steps_per_epoch: not a whole number where epochs wrap.

    Raises:
        ConfigError: there is not one.
    """
    steps = math.floor(Fraction(str(num_epochs)) * steps_per_epoch)
    if steps == 0:
        raise ConfigError(
            f"{num_epochs} of an epoch of {counted(math.floor(steps_per_epoch), 'step')} holds no whole step",
            where="training.num_epochs",
            fix="raise training.num_epochs, or set training.max_steps",
        )
    return steps


def rollout_timeout_s(given: float | None, max_new_tokens: int) -> float:
    """Longest wait for one rollout: as given, else its tokens at the stated floor of 2 per second, and 60 s at least.

    Returns: seconds.
    """
    return given or max(SHORTEST_WAIT_S, max_new_tokens / SLOWEST_TOKENS_PER_SECOND)


def transfer_mode(given: str) -> str:
    """Rule 5: what a transfer sends; `auto` is every weight, on any number of learner ranks."""
    return "full" if given == "auto" else given


def runnable_zero_stage(precision: str, stage: int) -> tuple[int, tuple[str, ...]]:
    """(the ZeRO stage to run, warnings).

    DeepSpeed's bf16 optimizer without ZeRO makes one update with zero gradients when it is built, which moves
    Adam's step count and decays the weights once; stage 1 does not, and gives the same numbers as 2 and 3.
    """
    if precision == "bf16" and stage == 0:
        warning = (
            "deepspeed.zero_stage 0 with model.precision bf16 is run as stage 1: DeepSpeed's own bf16 optimizer"
            " makes an extra update at the start; set deepspeed.zero_stage to 1 to say so yourself"
        )
        return 1, (warning,)
    return stage, ()


def deepspeed_config(shape: BatchShape, model: ModelSection, section: DeepSpeedSection, zero_stage: int) -> dict:
    """DeepSpeed's dictionary. Clipping is always written: when the key is absent, DeepSpeed clips at 1.0."""
    return {
        "train_batch_size": shape.effective_batch_size,
        "train_micro_batch_size_per_gpu": shape.per_device,
        "gradient_accumulation_steps": shape.accumulation_steps,
        "gradient_clipping": section.gradient_clipping,
        "zero_optimization": {"stage": zero_stage, **_offload(section.offload_optimizer)},
        # The optimizer is torch's own wherever its state lies: another one would give another run.
        "zero_force_ds_cpu_optimizer": False,
        # ZeRO refuses torch's plain SGD otherwise.
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": model.precision == "bf16"},
        "fp16": {"enabled": False},
        "steps_per_print": NEVER_PRINT,
        "wall_clock_breakdown": False,
    }


def _offload(offload_optimizer: str) -> dict:
    """`pin_memory` is of use where copies go to another device; where there is none DeepSpeed leaves it alone."""
    return {} if offload_optimizer == NO_OFFLOAD else {"offload_optimizer": {"device": offload_optimizer}}


def _total_steps(training: TrainingSection, steps_per_epoch: Fraction | None) -> int | None:
    if training.max_steps is not None or steps_per_epoch is None:
        return training.max_steps
    return steps_in_epochs(training.num_epochs, steps_per_epoch)


def _rate(training: TrainingSection, total_steps: int | None) -> LearningRate:
    return LearningRate(
        peak=training.learning_rate,
        schedule=training.lr_scheduler,
        warmup_steps=training.warmup_steps,
        final_ratio=training.min_learning_rate_ratio,
        total_steps=total_steps,
    )


def _evaluate(section: EvaluationSection, has_data: bool, total_steps: int | None) -> Cadence:
    return Cadence(
        enabled=has_data,
        at_start=has_data and section.at_start,
        every_steps=section.every_steps,
        total_steps=total_steps,
    )


def _warmup_warnings(warmup_steps: int, total_steps: int | None) -> tuple[str, ...]:
    if total_steps is None or warmup_steps < total_steps:
        return ()
    run = counted(total_steps, "step")
    return (f"training.warmup_steps is {warmup_steps} and the run has {run}: the learning rate rises to the end",)


def _ratio_warnings(b_ratio: Fraction, total_steps: int | None) -> tuple[str, ...]:
    if total_steps is None or b_ratio == 0 or total_steps * b_ratio >= 1:
        return ()
    share, run = f"stage2_ab.schedule.b_ratio is {float(b_ratio):g}", counted(total_steps, "step")
    return (f"{share} and the run has {run}: none of them trains Channel B",)


def _server_warnings(rollouts: RolloutMatchingSection) -> tuple[str, ...]:
    """vLLM's `--api-key` guards the routes of /v1 alone."""
    servers = rollouts.vllm.server.servers if rollouts.rollout_backend == "vllm" else ()
    reached = [server.base_url for server in servers if not is_loopback(server.base_url)]
    if not reached:
        return ()
    warning = (
        f"{SERVERS}: whoever reaches {', '.join(reached)} can pause it and replace its weights, also where it has an"
        " --api-key: let nobody but the learners reach it"
    )
    return (warning,)


def _patience_warnings(rollouts: RolloutMatchingSection, collective_timeout_s: float) -> tuple[str, ...]:
    """The answer of a server that hangs is drawn by another one: ranks that wait for it wait as long as both take."""
    if rollouts.rollout_backend != "vllm":
        return ()
    one = rollout_timeout_s(rollouts.vllm.server.infer_timeout_s, rollouts.max_new_tokens)
    longest = one * min(len(rollouts.vllm.server.servers), 2)
    if longest < collective_timeout_s:
        return ()
    warning = (
        f"a rank waits up to {longest:g} s for a rollout when a server hangs, and the others {collective_timeout_s:g} s"
        f" for the rank: they would give up first, without a checkpoint; set {INFER_TIMEOUT} lower, or"
        " deepspeed.collective_timeout_s higher"
    )
    return (warning,)

"""Config + topology + number of records -> every number of a run, decided once. No torch.

Invariants:
- R = p W G exactly, or no plan exists;
- steps_per_epoch x R = num_records_used <= num_records < num_records_used + R;
- total_steps >= 1, and no step is ever half-run;
- the learning rate and the channel are functions of the step number alone;
- evaluation (if there is validation data) and saving are due at the last step, whatever their interval;
- DeepSpeed's batch keys and its gradient clipping are always written;
- a key of the rollout servers that may be left to the program is decided here, and only here.

Also importable from here: the request arithmetic of `config.servers`, DeepSpeed's dictionary of `config.deepspeed`,
`Cadence` and `LearningRate` of `schedule`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from ds_stage2ab.config.batch import EFFECTIVE, BatchShape, counted, shape_batch
from ds_stage2ab.config.deepspeed import deepspeed_config, runnable_zero_stage
from ds_stage2ab.config.sections import Config, EvaluationSection, TrainingSection
from ds_stage2ab.config.servers import request_window, server_slots, split_requests
from ds_stage2ab.errors import ConfigError
from ds_stage2ab.schedule import Cadence, LearningRate, channel_for_step

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
    rollouts_per_rank: int
    # in a B step: `best_of` for each sample
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
    # the one that is run; bf16 without ZeRO is run as stage 1
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
    stage, _ = runnable_zero_stage(config.model.precision, config.deepspeed.zero_stage)
    replicas = tuple(server_replicas) if server_replicas and rollouts.rollout_backend == "vllm" else None
    return RunPlan(
        learners=learners,
        effective_batch_size=size,
        per_device=shape.per_device,
        accumulation_steps=shape.accumulation_steps,
        samples_per_rank=shape.samples_per_rank,
        rollouts_per_rank=shape.samples_per_rank * rollouts.best_of,
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

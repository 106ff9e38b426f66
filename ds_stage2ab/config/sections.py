"""The config as typed, frozen sections: one class per mapping of the schema, one field per key.

No field has a default: defaults are in the schema alone. Paths are as the user wrote them; a relative one is
relative to the working directory.
"""

# No `from __future__ import annotations`: build_config reads the real types of the fields.
import os
from dataclasses import dataclass, fields, is_dataclass
from fractions import Fraction
from pathlib import Path
from types import NoneType
from typing import get_args, get_origin


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSection:
    effective_batch_size: int
    per_device_train_batch_size: int
    gradient_accumulation_steps: int | None
    packing: bool
    global_max_length: int
    seed: int
    max_steps: int | None
    num_epochs: float
    learning_rate: float
    lr_scheduler: str
    warmup_steps: int
    min_learning_rate_ratio: float
    optimizer: str
    weight_decay: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    max_bad_steps: int
    max_hours: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSection:
    b_ratio: Fraction
    # the exact decimal that was written


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdSection:
    warn: float | None
    stop: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSection:
    patience: int
    predicted_per_true: ThresholdSection
    truncation_rate: ThresholdSection
    drop_rate: ThresholdSection
    valid_rate: ThresholdSection
    coord_mass: ThresholdSection


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelBSection:
    target: str
    rewrite_order: str | None
    # None with `append`, which rewrites nothing; with `rewrite` it means the data's order
    keep_spurious: bool
    drop_invalid_struct_ce_multiplier: float
    health: HealthSection


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage2ABSection:
    schedule: ScheduleSection
    n_softctx_iter: int
    softctx_grad_mode: str
    softctx_temperature: float
    channel_b: ChannelBSection
    desc_ce_weight: float
    bbox_smoothl1_weight: float
    bbox_smoothl1_beta: float
    bbox_ciou_weight: float
    coord_gate_weight: float
    coord_soft_ce_weight: float
    coord_target_sigma: float
    coord_w1_weight: float
    coord_ce_weight: float
    coord_el1_weight: float
    coord_ehuber_weight: float
    coord_huber_delta: float
    coord_entropy_weight: float
    score_weight: float
    noise_objects: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingSection:
    temperature: float
    top_p: float
    top_k: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatTerminateSection:
    max_token_run: int | None
    ngram_size: int | None
    max_ngram_repeats: int | None
    max_objects: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSection:
    base_url: str
    group_port: int | None
    tensor_parallel_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmServerSection:
    servers: tuple[ServerSection, ...]
    api_key_env: str | None
    timeout_s: float
    infer_timeout_s: float | None
    recover_s: float
    on_lost: str
    servers_file: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSyncSection:
    mode: str
    bucket_mb: int
    timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmProbeSection:
    tolerance: float | None
    every_syncs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSection:
    mode: str
    server: VllmServerSection
    sync: VllmSyncSection
    probe: VllmProbeSection


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySection:
    run: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutMatchingSection:
    rollout_backend: str
    vllm: VllmSection
    replay: ReplaySection
    decode_batch_size: int
    max_new_tokens: int
    best_of: int
    decoding: DecodingSection
    repetition_penalty: float
    repeat_terminate: RepeatTerminateSection
    candidate_top_k: int
    iou_gate: float
    fp_cost: float
    fn_cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtraSection:
    rollout_matching: RolloutMatchingSection


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomSection:
    extra: ExtraSection


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSection:
    path: Path
    attn_implementation: str
    precision: str
    freeze: tuple[str, ...]
    gradient_checkpointing: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TunerSection:
    type: str
    lora_rank: int
    lora_alpha: float
    trainable_token_rows: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSection:
    train: Path
    validation: Path | None
    image_root: Path | None
    box_format: str
    object_order: str
    codec: str
    system_prompt: str | None
    user_prompt: str
    negative_classes: int
    min_pixels: int | None
    max_pixels: int | None
    workers: int
    on_bad_sample: str
    on_overlong: str
    epoch_end: str


CLASSES = "{classes}"
"""Stands in `data.user_prompt` for the names of a record's classes."""
APPEND = "append"
"""The value of `stage2_ab.channel_b.target` that keeps an answer as it was generated."""
GENERATED = "generated"
"""The value of `stage2_ab.channel_b.rewrite_order` that keeps matched objects in the model's order."""
NO_OFFLOAD = "none"
"""The value of `deepspeed.offload_optimizer` that leaves the optimizer on the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepSpeedSection:
    zero_stage: int
    gradient_clipping: float
    offload_optimizer: str
    collective_timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggingSection:
    root: Path
    name: str | None
    every_steps: int
    trackers: tuple[str, ...]
    rollouts: bool
    lock: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSection:
    every_steps: int | None
    keep_last: int
    keep_best: str | None
    save_by: str | None
    # hh:mm:ss
    on_error: str
    engine_state: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSection:
    every_steps: int | None
    at_start: bool
    stop_after: int | None
    max_samples: int | None
    num_pictures: int
    decoding: DecodingSection


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A whole config, checked and complete."""

    training: TrainingSection
    stage2_ab: Stage2ABSection
    custom: CustomSection
    model: ModelSection
    tuner: TunerSection
    data: DataSection
    deepspeed: DeepSpeedSection
    logging: LoggingSection
    checkpoint: CheckpointSection
    evaluation: EvaluationSection

    @property
    def rollout_matching(self) -> RolloutMatchingSection:
        return self.custom.extra.rollout_matching


def build_config(resolved: dict) -> Config:
    """Typed sections from checked values with all defaults filled in."""
    return _build(Config, resolved)


def _build(section: type, values: dict) -> object:
    known = {field.name: field.type for field in fields(section)}
    assert known.keys() == values.keys(), f"{section.__name__} and its schema differ: {known.keys() ^ values.keys()}"
    return section(**{name: _typed(kind, values[name]) for name, kind in known.items()})


def _typed(kind: type, value: object) -> object:
    if is_dataclass(kind):
        return _build(kind, value)
    if value is None:
        return None
    if kind is Fraction:
        return Fraction(str(value))
    if get_origin(kind) is tuple:
        (entry, _) = get_args(kind)
        return tuple(_typed(entry, item) for item in value)
    plain = next((member for member in get_args(kind) if member is not NoneType), kind)
    return plain(os.path.expanduser(value)) if plain is Path else plain(value)

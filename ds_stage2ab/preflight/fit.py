"""`ds-stage2ab plan --gpu-memory`: whether a learner fits its GPU, and what to change if it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ds_stage2ab.config.deepspeed import runnable_zero_stage
from ds_stage2ab.config.sections import NO_OFFLOAD, Config
from ds_stage2ab.preflight.memory import estimate
from ds_stage2ab.preflight.model_shape import ModelShape

GIB = 2**30
RESERVE_GIB = 3  # what CUDA, the allocator and the kernels may take for themselves
SHORTEST = 2048  # tokens that a proposed global_max_length leaves at least
LORA_RANK, LORA_ALPHA = 32, 64.0

Step = tuple[str, Callable[[Config], Config]]
"""(setting in words, what it makes of a config)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One value of the config, and what a learner would need with it."""

    setting: str
    # `key: value`
    total: int
    # bytes, together with the changes before it


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How a learner and its GPU go together."""

    gpu_gib: float
    total: int
    # bytes that the learner needs
    alone: tuple[Change, ...]
    # each of which makes it fit by itself; empty if it fits, or if none does
    together: tuple[Change, ...]
    # which make it fit one after the other, where none alone does; empty if not even these do

    @property
    def room(self) -> int:
        """Bytes for the learner."""
        return int((self.gpu_gib - RESERVE_GIB) * GIB)

    @property
    def fits(self) -> bool:
        return self.total <= self.room


def fit(shape: ModelShape, config: Config, *, learners: int, gpu_gib: float) -> Fit:
    """Compare the estimate with a GPU; where it is larger, try what the config may change.

    Args:
        gpu_gib: memory of one GPU, GiB.
    """

    def total(changed: Config) -> int:
        stage, _ = runnable_zero_stage(changed.model.precision, changed.deepspeed.zero_stage)
        return estimate(shape, changed, learners=learners, zero_stage=stage).total

    found = Fit(gpu_gib=gpu_gib, total=total(config), alone=(), together=())
    if found.fits:
        return found
    alone = [Change(setting=words, total=total(change(config))) for words, change in _changes(config, learners)]
    enough = tuple(one for one in alone if one.total <= found.room)
    return replace(found, alone=enough, together=() if enough else _together(config, learners, total, found.room))


def _together(config: Config, learners: int, total: Callable[[Config], int], room: int) -> tuple[Change, ...]:
    """The first changes in their order with which it fits, without those that it fits without."""
    chosen: list[Step] = []
    for step in _changes(config, learners):
        chosen.append(step)
        if total(_changed(config, chosen)) <= room:
            break
    else:
        return ()
    for step in tuple(chosen[:-1]):
        fewer = [one for one in chosen if one is not step]
        chosen = fewer if total(_changed(config, fewer)) <= room else chosen
    places = range(1, len(chosen) + 1)
    totals = [total(_changed(config, chosen[:place])) for place in places]
    return tuple(Change(setting=words, total=need) for (words, _), need in zip(chosen, totals, strict=True))


def _changed(config: Config, steps: list[Step]) -> Config:
    for _, change in steps:
        config = change(config)
    return config


def _changes(config: Config, learners: int) -> Iterator[Step]:
    """What may be changed, the cheapest first: time, then length, then what is trained."""
    model, training, deepspeed, loop = config.model, config.training, config.deepspeed, config.stage2_ab
    if not model.gradient_checkpointing:
        yield "model.gradient_checkpointing: true", _with("model", gradient_checkpointing=True)
    if learners > 1 and deepspeed.zero_stage < 2:
        yield "deepspeed.zero_stage: 2", _with("deepspeed", zero_stage=2)
    if learners > 1 and deepspeed.zero_stage < 3:
        yield "deepspeed.zero_stage: 3", _with("deepspeed", zero_stage=3)
    if loop.n_softctx_iter > 2 and loop.softctx_grad_mode == "unroll":
        yield "stage2_ab.softctx_grad_mode: em_detach", _with("stage2_ab", softctx_grad_mode="em_detach")
    if deepspeed.offload_optimizer == NO_OFFLOAD and deepspeed.zero_stage:
        yield "deepspeed.offload_optimizer: cpu", _with("deepspeed", offload_optimizer="cpu")
    half = training.global_max_length // 2
    if half >= SHORTEST:
        setting = f"training.global_max_length: {half} (if the longest sample fits: ds-stage2ab data)"
        yield setting, _with("training", global_max_length=half)
    if "vision" not in model.freeze and "language" not in model.freeze:
        yield "model.freeze: [vision, aligner]", _with("model", freeze=("vision", "aligner"))
    if config.tuner.type == "full" and "language" not in model.freeze:
        lora = _with("tuner", type="lora", lora_rank=LORA_RANK, lora_alpha=LORA_ALPHA)
        yield f"tuner.type: lora, with lora_rank: {LORA_RANK}", lora


def _with(section: str, **values: object) -> Callable[[Config], Config]:
    return lambda config: replace(config, **{section: replace(getattr(config, section), **values)})

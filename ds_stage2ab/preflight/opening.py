"""The opening lines of a run: the batch in words, then what it trains, on what, and what is odd about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ds_stage2ab.codec.bins import NUM_BINS
from ds_stage2ab.config.batch import counted
from ds_stage2ab.config.sections import Config, RolloutMatchingSection
from ds_stage2ab.plan import RunPlan
from ds_stage2ab.preflight.text import two_columns

Line = tuple[str, str]
"""(what, value)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What a run has found at its start."""

    parameters: int
    trained_parameters: int
    adapted_layers: int
    # linear layers with adapters; 0: none are trained
    records: int
    held_out: int
    run_folder: Path
    recording: tuple[int, Path] | None
    # (rollouts, folder) that Channel B replays
    operators: str
    # what runs the ops: `compiled` or `reference`
    start: str
    # where a run that resumes begins; empty for others
    warnings: Sequence[str]


def banner(batch_sentence: str, lines: Sequence[Line]) -> str:
    """The batch in words, then (what, value) pairs in two columns.

    Args:
        batch_sentence: e.g. "32 samples per step = 4 per rank x 2 ranks x 4 micro-steps".
        lines: e.g. [("model", "checkpoints/tiny"), ("steps", "300")].
    """
    return f"{batch_sentence}\n{two_columns(lines)}"


def opening_lines(config: Config, plan: RunPlan, found: Inventory, attempt: int) -> tuple[Line, ...]:
    """What `banner` shows of a run.

    Args:
        attempt: which start of the run this is, from 1.
    """
    per_epoch = plan.num_records_used / plan.effective_batch_size
    length = f"packs of at most {plan.global_max_length} tokens" if plan.packing else "one sample per pack"
    model = f"{config.model.path}, {found.parameters:,} parameters, {found.trained_parameters:,} trained"
    return (
        ("model", model),
        *_tuner_lines(config, found.adapted_layers),
        ("data", f"{found.records:,} records, {found.held_out:,} held out"),
        ("steps", f"{plan.total_steps:,} = {plan.epochs:.3g} epochs of {per_epoch:.5g}; {length}"),
        ("schedule", f"{plan.total_steps - plan.b_steps:,} A steps, {plan.b_steps:,} B steps"),
        ("rollouts", f"{_rollouts(config, found)}; operators: {found.operators}"),
        ("engine", f"DeepSpeed, ZeRO stage {plan.zero_stage}, {config.model.precision}"),
        ("run folder", f"{found.run_folder}, attempt {attempt}"),
        *((("resumed", found.start),) if found.start else ()),
        *(("warning", warning) for warning in found.warnings),
    )


def _tuner_lines(config: Config, adapted_layers: int) -> list[Line]:
    if not adapted_layers:
        return []
    tuner = config.tuner
    words = f"{tuner.type}, rank {tuner.lora_rank}, alpha {tuner.lora_alpha:g}, on {adapted_layers} linear layers"
    rows = f", and {NUM_BINS:,} rows of the embedding" if tuner.trainable_token_rows else ""
    return [("tuner", words + rows)]


def _rollouts(config: Config, found: Inventory) -> str:
    if found.recording is not None:
        number, folder = found.recording
        made = f"targets are made anew ({config.stage2_ab.channel_b.target})"
        return f"replay, {number:,} that stand in {folder}; {made}"
    return _sampled(config.rollout_matching)


def _sampled(section: RolloutMatchingSection) -> str:
    temperature = section.decoding.temperature
    how = f"temperature {temperature:g}" if temperature else "greedy"
    who, place = section.rollout_backend, "rank"
    if who == "vllm":  # this is printed when the handshake is over
        servers = counted(len(section.vllm.server.servers), "server")
        who, place = f"vllm, {servers} that passed the handshake", "replica"
    best = f", the best of {section.best_of} for each sample" if section.best_of > 1 else ""
    return f"{who}, at most {section.decode_batch_size} at once on each {place}, {how}{best}"

"""What a run would do, in words: a table, the memory, DeepSpeed's dictionary, and what is odd."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from ds_stage2ab.config.batch import counted
from ds_stage2ab.config.sections import CLASSES, DataSection
from ds_stage2ab.errors import printable
from ds_stage2ab.plan import Cadence, RunPlan, split_requests
from ds_stage2ab.preflight.fit import RESERVE_GIB, Change, Fit
from ds_stage2ab.preflight.lengths import Lengths
from ds_stage2ab.preflight.report import NUM_FIRST, RECORDS, PreflightReport, due_steps, first_steps

MAX_SHARES = 8  # servers whose shares are named one by one
MIB, GIB = 2**20, 2**30


def as_text(report: PreflightReport) -> str:
    """The report as text: what runs, what it takes, what is odd, and DeepSpeed's dictionary."""
    devices = counted(report.plan.learners, "learner")
    if report.rollout_devices:
        devices += f" and {counted(report.rollout_devices, 'rollout device')}"
    sections = [
        f"{printable(str(report.file))} on {devices}",
        two_columns(_rows(report)),
        _memory_text(report),
        "" if report.fit is None else _fit_text(report.fit),
        f"DeepSpeed's configuration\n{json.dumps(report.plan.deepspeed_config, indent=2)}",
        "\n".join(f"warning: {warning}" for warning in report.warnings),
    ]
    return printable("\n\n".join(section for section in sections if section), keep_lines=True)


def two_columns(rows: Sequence[tuple[str, str]]) -> str:
    """One line for each (what, value), whatever a value holds: paths are among them."""
    width = max(len(what) for what, _ in rows)
    return "\n".join(f"  {what:<{width}}  {printable(value)}" for what, value in rows)


def _rows(report: PreflightReport) -> list[tuple[str, str]]:
    plan, config = report.plan, report.config
    packs = f"{'several samples' if plan.packing else 'one sample'}, at most {plan.global_max_length:,} tokens"
    return [
        ("batch", plan.batch_sentence),
        ("records", _records_words(report)),
        ("steps", _steps_words(plan, config.training.num_epochs)),
        ("channels", _channel_words(plan)),
        ("rate", f"{plan.rate.peak:g}, {plan.rate.schedule}, {counted(plan.rate.warmup_steps, 'step')} of warm-up"),
        ("pack", packs),
        *_prompt_words(report.config.data),
        ("room", _room_words(report.lengths, plan.global_max_length)),
        *_rollout_rows(report),
        ("evaluation", _cadence_words(plan.evaluate) if plan.evaluate.enabled else "none: data.validation is not set"),
        ("checkpoint", f"{_cadence_words(plan.save)}; {_kept_words(config.checkpoint.keep_last)}"),
        ("engine", f"DeepSpeed, ZeRO stage {plan.zero_stage}, {config.model.precision}"),
        ("idle", _waiting_words(report)),
    ]


def _records_words(report: PreflightReport) -> str:
    plan, file = report.plan, report.config.data.train
    if report.num_records is None:
        return f"not known: {file} is not on this machine; say how many with {RECORDS} N"
    left = report.num_records - plan.num_records_used
    if report.num_records % plan.effective_batch_size and not left:
        size = report.num_records / plan.effective_batch_size
        return f"{report.num_records:,}: an epoch is {size:.2f} steps, the last one goes on with the next epoch"
    rest = f", {counted(left, 'record')} left over" if left else ""
    return f"{report.num_records:,}: an epoch is {counted(plan.steps_per_epoch, 'step')}{rest}"


def _steps_words(plan: RunPlan, num_epochs: float) -> str:
    if plan.total_steps is None:
        return f"not known without the records: {_epochs(num_epochs)}"
    return f"{plan.total_steps:,}" + ("" if plan.epochs is None else f" = {_epochs(plan.epochs)}")


def _epochs(number: float) -> str:
    shown = f"{number:.3g}"
    return "1 epoch" if shown == "1" else f"{shown} epochs"


def _channel_words(plan: RunPlan) -> str:
    if plan.b_ratio in (0, 1):
        return f"{'B' if plan.b_ratio else 'A'} alone"
    totals = (
        {"A": None, "B": None} if plan.b_steps is None else {"A": plan.total_steps - plan.b_steps, "B": plan.b_steps}
    )
    each = (
        _channel_steps(channel, first_steps(channel, plan.b_ratio, plan.total_steps), totals[channel])
        for channel in "AB"
    )
    return f"{' and '.join(each)}; A comes first"


def _channel_steps(channel: str, first: list[int], total: int | None) -> str:
    if total == 0:
        return f"no {channel} step"
    many = f"{channel} steps" if total is None else counted(total, f"{channel} step")
    return f"{many} ({_listed(first, total != len(first))})"


def _listed(steps: list[int], goes_on: bool) -> str:
    return ", ".join([*(f"{step:,}" for step in steps), *(["..."] if goes_on else [])])


def _prompt_words(data: DataSection) -> list[tuple[str, str]]:
    if CLASSES not in data.user_prompt:
        return []
    absent = f"{data.negative_classes} absent ones" if data.negative_classes else "no absent ones"
    return [("prompts", f"with the names of a record's classes and {absent}; a record's own prompt as it stands")]


def _room_words(lengths: Lengths, cap: int) -> str:
    limit = f"{lengths.limit:,} tokens" + (" (the model's limit)" if lengths.limit < cap else "")
    room = f"{limit} for prompt and answer: {lengths.answer:,} for the answer"
    if lengths.image is None:
        return f"{room}, {lengths.left_for_words:,} for image and words"
    image = f"{lengths.image:,} for the largest image" if lengths.is_counted else f"{lengths.image:,} for any image"
    left = lengths.left_for_words
    return f"{room}, {image}, {left:,} for the words" if left > 0 else f"{room}, {image}: some may be too long"


def _rollout_rows(report: PreflightReport) -> list[tuple[str, str]]:
    plan, section = report.plan, report.config.rollout_matching
    at_once = section.decode_batch_size
    each = f", {section.best_of} for each sample" if section.best_of > 1 else ""
    per_step = f"{counted(plan.rollouts_per_rank, 'rollout')} of a rank in a B step{each}"
    if report.uses_servers:
        servers, replicas = len(plan.server_replicas), counted(sum(plan.server_replicas), "replica")
        rows = [
            ("rollouts", f"vllm: {counted(servers, 'server')}, {replicas}, at most {at_once} at once on each replica")
        ]
        shares = [len(part) for part in split_requests(plan.rollouts_per_rank, plan.server_replicas)]
        each = f"{min(shares)} to {max(shares)} for each" if servers > MAX_SHARES else " + ".join(map(str, shares))
        in_flight = f"{plan.request_window} or more in flight"
        return [*rows, ("requests", f"{per_step}, about {each} by server, {in_flight}")] if plan.b_ratio else rows
    if plan.b_ratio and section.rollout_backend == "replay":
        return [("rollouts", f"replay: {per_step}, from {section.replay.run}")]
    if plan.b_ratio:
        calls = counted(math.ceil(plan.rollouts_per_rank / at_once), "decode call")
        return [("rollouts", f"hf: {per_step}, in {calls} of at most {at_once}")]
    return [("rollouts", f"hf: for evaluations alone, at most {at_once} at once on each rank")]


def _cadence_words(cadence: Cadence) -> str:
    start = "before the first step, then " if cadence.at_start else ""
    if cadence.total_steps is None:
        every = f"after every {counted(cadence.every_steps, 'step')} and " if cadence.every_steps else ""
        return f"{start}{every}at the end"
    steps = due_steps(cadence)
    if len(steps) <= NUM_FIRST + 1:
        return f"{start}after step {_listed(steps, False)}"
    return f"{start}after step {_listed(steps[:NUM_FIRST], True)}, {steps[-1]:,} ({len(steps):,} times)"


def _kept_words(keep_last: int) -> str:
    return "the newest is kept" if keep_last == 1 else f"the newest {keep_last} are kept"


def _waiting_words(report: PreflightReport) -> str:
    rollout, devices = report.rollout_devices, report.plan.learners + report.rollout_devices
    if rollout == 0:
        return "none: no device is for rollouts alone"
    if report.waiting_steps == 0:
        return "none: every step draws rollouts"
    verb = "waits" if rollout == 1 else "wait"
    share = f"{rollout} of {counted(devices, 'device')} {verb} in {100 * report.waiting_steps:g} % of the steps"
    return f"{share}: {100 * report.waiting_time:.0f} % of all device time, if steps last alike"


def _memory_text(report: PreflightReport) -> str:
    memory = report.memory
    if memory is None:
        return f"memory per learner: no estimate, {report.no_memory}"
    rows = [
        ("weights", memory.weights, f"{memory.parameters:,} parameters"),
        ("gradients", memory.gradients, f"of {memory.trained:,} that train"),
        ("optimizer", memory.optimizer, report.config.training.optimizer),
        ("reduce bucket", memory.reduce_bucket, "DeepSpeed's"),
        ("activations", memory.activations, "of one full pack, at most"),
        ("together", memory.total, "and what the GPU's libraries take, some 1 to 3 GiB"),
    ]
    head = "memory per learner, estimated by arithmetic and not measured"
    return "\n".join([head, two_columns([(name, f"{in_words(size):>9}  {note}") for name, size, note in rows])])


def _fit_text(found: Fit) -> str:
    """Whether it fits, and what to change if not."""
    gpu, need = f"a GPU of {found.gpu_gib:g} GiB", f"{in_words(found.total)} and {RESERVE_GIB} GiB for the libraries"
    if found.fits:
        return f"fits {gpu}: {need}"
    head = f"does not fit {gpu}: {need}"
    if found.alone:
        return "\n".join([f"{head}; each of these alone makes it fit", two_columns(_change_rows(found.alone))])
    if found.together:
        return "\n".join([f"{head}; these together make it fit", two_columns(_change_rows(found.together))])
    return f"{head}; no change of the config makes it fit: take a smaller model, or larger GPUs"


def _change_rows(changes: Sequence[Change]) -> list[tuple[str, str]]:
    return [(one.setting, in_words(one.total)) for one in changes]


def in_words(size: int) -> str:
    """`8.4 GiB`, `14.2 MiB`."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"

"""Preflight report (dry run) of a config: no torch, no GPU, and no file but the config has to be there.

The checkpoint's sizes and the records are read if they are on this machine; what is not is reported as unknown.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

from ds_stage2ab.config.batch import counted, implied_learners
from ds_stage2ab.config.load import check_config
from ds_stage2ab.config.nodes import Node
from ds_stage2ab.config.report import as_error
from ds_stage2ab.config.rules import RULES
from ds_stage2ab.config.sections import Config, build_config
from ds_stage2ab.config.servers import replicas_of
from ds_stage2ab.config.topology_rules import topology_rules
from ds_stage2ab.errors import ConfigError, DataError, EnvironmentFault
from ds_stage2ab.model_folder.checks import check_folder, warnings_of
from ds_stage2ab.model_folder.images import THIN_FIX, Size, image_limits, too_thin
from ds_stage2ab.model_folder.read import ModelFolder
from ds_stage2ab.plan import Cadence, RunPlan, make_plan, server_slots, split_requests
from ds_stage2ab.preflight.descriptions import check_files
from ds_stage2ab.preflight.fit import Fit, fit
from ds_stage2ab.preflight.lengths import Lengths, image_sizes, share_of_room
from ds_stage2ab.preflight.memory import Memory, estimate
from ds_stage2ab.preflight.model_shape import ModelShape, read_shape
from ds_stage2ab.preflight.warnings import run_warnings

RECORDS = "--records"
NUM_FIRST = 3  # steps of a channel that are listed


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightReport:
    """Everything that is reported of one config."""

    file: Path
    config: Config
    plan: RunPlan
    rollout_devices: int
    # beside the learners': those of all servers, or those that the user has for them
    num_records: int | None
    lengths: Lengths
    memory: Memory | None
    no_memory: str
    # why there is no estimate; empty if there is one
    fit: Fit | None
    # with the GPU that was asked about; None: none was, or there is no estimate
    warnings: tuple[str, ...]

    @property
    def uses_servers(self) -> bool:
        return self.config.rollout_matching.rollout_backend == "vllm"

    @property
    def waiting_steps(self) -> float:
        """Share of the steps in which the rollout devices are idle: those of Channel A."""
        return float(1 - self.plan.b_ratio) if self.uses_servers else 1.0

    @property
    def waiting_time(self) -> float:
        """Idle share of the time of all devices, if all steps take equally long."""
        return self.waiting_steps * self.rollout_devices / (self.plan.learners + self.rollout_devices)


def preflight_report(
    file: Path,
    overrides: Node | None,
    *,
    learners: int | None,
    rollout_devices: int | None,
    records: int | None,
    gpu_gib: float | None = None,
) -> PreflightReport:
    """Work out a run from its config and a topology.

    Args:
        file: the YAML file.
        overrides: what `overrides.read_overrides` made of the command line.
        learners: learner ranks; None: the number that the config implies.
        rollout_devices: devices of all rollout servers together; None: one replica per server.
        records: number of training records, for where `data.train` is not on this machine.
        gpu_gib: memory of one GPU, GiB; None: it is not compared.

    Raises:
        ConfigError: the file has problems (all are in the message), or its numbers cannot be run.
        DataError: a record does not say how large its image is, or a description holds an added token.
        EnvironmentFault: parts of the checkpoint folder contradict each other.
    """
    checked = check_config(file, (*topology_rules(learners, rollout_devices), *RULES), overrides)
    if checked.problems:
        raise as_error(checked.problems, str(file), checked.document.sources)
    config = build_config(checked.resolved)
    uses_servers = config.rollout_matching.rollout_backend == "vllm"
    spans = [server.tensor_parallel_size for server in config.rollout_matching.vllm.server.servers]
    train = image_sizes(config.data.train)
    num_records = _num_records(config.data.train, train, records)
    plan = make_plan(
        config,
        learners or _implied_learners(config),
        num_records,
        replicas_of(spans, rollout_devices) if uses_servers else None,
    )
    folder = check_folder(config.model.path, whole=False)
    files = [file for file in (config.data.train, config.data.validation) if file]
    check_files(files, folder, config.data.codec)
    shape, no_memory = _shape(config.model.path)
    return PreflightReport(
        file=file,
        config=config,
        plan=plan,
        rollout_devices=rollout_devices or (sum(spans) if uses_servers else 0),
        num_records=num_records,
        lengths=_lengths(config, train, folder, shape),
        memory=shape and estimate(shape, config, learners=plan.learners, zero_stage=plan.zero_stage),
        no_memory=no_memory,
        fit=shape and gpu_gib and fit(shape, config, learners=plan.learners, gpu_gib=gpu_gib),
        warnings=(
            *run_warnings(config, plan),
            *warnings_of(folder),
            *_thin_images(config.data.train, train, skips=config.data.on_bad_sample == "skip"),
            *_unused_devices(config.rollout_matching.rollout_backend, rollout_devices),
        ),
    )


def _implied_learners(config: Config) -> int:
    return implied_learners(
        effective_batch_size=config.training.effective_batch_size,
        per_device=config.training.per_device_train_batch_size,
        accumulation=config.training.gradient_accumulation_steps,
    )


def _num_records(file: Path, sizes: list[Size] | None, given: int | None) -> int | None:
    if sizes is None:
        return given
    if given not in (None, len(sizes)):
        raise ConfigError(
            f"{given} contradicts {file}, which is on this machine and holds {counted(len(sizes), 'record')}",
            where=RECORDS,
            fix=f"leave {RECORDS} out",
        )
    return len(sizes)


def _thin_images(file: Path, sizes: list[Size] | None, *, skips: bool) -> tuple[str, ...]:
    """A warning of the images that the image processor refuses and the run skips; the first is raised if it does not.

    Raises:
        DataError: there is one.
    """
    thin = [(f"{file}:{line}", why) for line, size in enumerate(sizes or (), start=1) if (why := too_thin(size))]
    if thin and not skips:
        raise DataError(f"the image {thin[0][1]}", where=thin[0][0], fix=THIN_FIX)
    share = f"{len(thin)} of {len(sizes or ())} images cannot be used, and their samples will be skipped"
    return (f"{share}; the first, {thin[0][0]}, {thin[0][1]}",) if thin else ()


def _shape(folder: Path) -> tuple[ModelShape | None, str]:
    try:
        return read_shape(folder), ""
    except EnvironmentFault as fault:
        return None, f"{fault.where} {fault.why}"


def _lengths(
    config: Config, train: list[Size] | None, folder: ModelFolder, shape: ModelShape | None
) -> Lengths:
    answered = []
    if config.stage2_ab.schedule.b_ratio:
        answered.append(train)
    if config.data.validation is not None:
        held_out = image_sizes(config.data.validation)
        _thin_images(config.data.validation, held_out, skips=False)
        answered.append(held_out and held_out[: config.evaluation.max_samples])
    return share_of_room(
        answered,
        image_limits(folder.image_settings, min_pixels=config.data.min_pixels, max_pixels=config.data.max_pixels),
        answer=config.rollout_matching.max_new_tokens,
        cap=config.training.global_max_length,
        position_limit=shape.text.position_limit if shape else None,
    )


def _unused_devices(backend: str, rollout_devices: int | None) -> tuple[str, ...]:
    if backend == "vllm" or not rollout_devices:
        return ()
    who = "the learners draw the rollouts themselves" if backend == "hf" else "the rollouts are read from files"
    return (f"rollout_backend is {backend}: {who}, and no step uses a rollout device",)


# -- steps -----------------------------------------------------------------------------------------------------------


def first_steps(channel: str, b_ratio: Fraction, total_steps: int | None) -> list[int]:
    """Numbers of the first few steps of a channel, counted from 1.

    The first n steps hold floor(n b) B steps, so the k-th B step is number ceil(k / b); they hold ceil(n (1 - b)) A
    steps, so the k-th A step is number floor((k - 1) / (1 - b)) + 1.
    """
    share = b_ratio if channel == "B" else 1 - b_ratio
    if share == 0:
        return []
    ranks = range(1, NUM_FIRST + 1)
    steps = [math.ceil(k / share) if channel == "B" else math.floor((k - 1) / share) + 1 for k in ranks]
    return [step for step in steps if total_steps is None or step <= total_steps]


def due_steps(cadence: Cadence) -> list[int]:
    """Numbers of finished steps after which something is due; the number of steps must be known."""
    every = cadence.every_steps or cadence.total_steps
    candidates = {*range(every, cadence.total_steps + 1, every), cadence.total_steps}
    return sorted(step for step in candidates if cadence.due(step - 1))


# -- as data ---------------------------------------------------------------------------------------------------------


def as_data(report: PreflightReport) -> dict:
    """The report as JSON values; null: unknown, or absent."""
    plan, section = report.plan, report.config.rollout_matching
    steps_known = plan.total_steps is not None
    return {
        "file": str(report.file),
        "learners": plan.learners,
        "rollout_devices": report.rollout_devices,
        "batch": plan.batch_sentence,
        "samples_per_rank": plan.samples_per_rank,
        "num_records": report.num_records,
        "num_records_used": plan.num_records_used,
        "steps_per_epoch": plan.steps_per_epoch,
        "total_steps": plan.total_steps,
        "epochs": plan.epochs,
        "b_ratio": float(plan.b_ratio),
        "b_steps": plan.b_steps,
        "first_a_steps": first_steps("A", plan.b_ratio, plan.total_steps),
        "first_b_steps": first_steps("B", plan.b_ratio, plan.total_steps),
        "packing": plan.packing,
        "lengths": {**asdict(report.lengths), "left_for_words": report.lengths.left_for_words},
        "rollouts": {
            "backend": section.rollout_backend,
            "per_rank": plan.rollouts_per_rank,
            "decode_batch_size": section.decode_batch_size,
            "decode_calls_per_rank": math.ceil(plan.rollouts_per_rank / section.decode_batch_size)
            if section.rollout_backend == "hf"
            else None,
            "servers": _servers_as_data(plan, section.decode_batch_size) if report.uses_servers else None,
        },
        "evaluation": {
            "at_start": plan.evaluate.at_start,
            "after_steps": due_steps(plan.evaluate) if steps_known else None,
        },
        "checkpoint_after_steps": due_steps(plan.save) if steps_known else None,
        "deepspeed_config": plan.deepspeed_config,
        "memory_per_learner": report.memory and {**asdict(report.memory), "total": report.memory.total},
        "fit": _fit_as_data(report.fit),
        "idle": {
            "devices": report.rollout_devices,
            "share_of_steps": report.waiting_steps if report.rollout_devices else 0.0,
            "share_of_device_time": report.waiting_time,
        },
        "warnings": list(report.warnings),
    }


def _fit_as_data(found: Fit | None) -> dict | None:
    return found and {"fits": found.fits, "room": found.room, **asdict(found)}


def _servers_as_data(plan: RunPlan, decode_batch_size: int) -> dict:
    return {
        "replicas": list(plan.server_replicas),
        "request_window": plan.request_window,
        "requests_per_server": [len(part) for part in split_requests(plan.rollouts_per_rank, plan.server_replicas)],
        "slots_of_each_rank": server_slots(decode_batch_size, plan.server_replicas, plan.learners),
        "infer_timeout_s": plan.infer_timeout_s,
        "probe_tolerance": plan.probe_tolerance,
        "sync_mode": plan.sync_mode,
    }

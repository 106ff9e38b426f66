"""Composition root: config and ranks -> a run ready to loop. Builds everything, loops over nothing."""

import socket
import sys
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ds_stage2ab import ops
from ds_stage2ab.assemble.backends import make_backend, sampled_or_replayed
from ds_stage2ab.assemble.inputs import Parts, read_parts
from ds_stage2ab.channels.expectation import Expectation
from ds_stage2ab.channels.rollout_matching import RolloutMatching
from ds_stage2ab.codec.text import get_codec
from ds_stage2ab.config.load import LoadedConfig
from ds_stage2ab.data.datasets import SKIP, data_warnings
from ds_stage2ab.data.feed import Feed, Reader
from ds_stage2ab.data.stream import SampleOrder
from ds_stage2ab.detector_file import of_config
from ds_stage2ab.engine.build import (
    build_engine,
    build_optimizer,
    position_index,
)
from ds_stage2ab.engine.checkpoint import Checkpoints
from ds_stage2ab.engine.facts import environment
from ds_stage2ab.engine.resume import set_aside
from ds_stage2ab.engine.run import Run
from ds_stage2ab.engine.run_folder import ENVIRONMENT_FILE, ORIGINS_FILE, SAMPLING_FILE, explained
from ds_stage2ab.engine.start import Start
from ds_stage2ab.engine.training_state import restore_optimizer, restore_random
from ds_stage2ab.engine.tuner import adapters_of
from ds_stage2ab.engine.whole_model import WholeModel
from ds_stage2ab.engine.window import Window
from ds_stage2ab.evaluation.evaluator import Evaluator
from ds_stage2ab.losses.objective import Objective
from ds_stage2ab.metrics.best_watch import BestWatch
from ds_stage2ab.metrics.health_watch import HealthWatch
from ds_stage2ab.metrics.journal import EvaluationRecord, read_history
from ds_stage2ab.metrics.recorder import Metrics
from ds_stage2ab.metrics.sinks import ConsoleSink, JsonlSink, Sink, WarningsSink
from ds_stage2ab.metrics.trackers import TrackedRun, open_trackers
from ds_stage2ab.preflight.opening import Inventory, opening_lines
from ds_stage2ab.preflight.warnings import run_warnings
from ds_stage2ab.rollout.base import RolloutBackend, evaluation_sampling, sampling_record
from ds_stage2ab.rollout.record import RolloutLog
from ds_stage2ab.runtime.ranks import World

PARTITIONED = 3
"""The ZeRO stage that leaves a part of each parameter on every rank."""


def assemble(loaded: LoadedConfig, world: World, start: Start) -> Run:
    """Build a run; the run folder is claimed last, when all that can be known to be good is, servers included."""
    torch.manual_seed(loaded.config.training.seed)
    parts = read_parts(loaded, world, start)
    inventory = _inventory(parts)
    whole_model = WholeModel(parts.source.model, world, is_partitioned=parts.plan.zero_stage == PARTITIONED)
    channel_a = _expectation(parts)
    dummy_segment = channel_a.dummy_segment(parts.encoder.blank(parts.datasets.train))
    objective = Objective(parts.source.model, torch.tensor(parts.vocabulary.coordinate_ids), parts.config.stage2_ab)
    optimizer = build_optimizer(objective, parts.config.training)
    engine = build_engine(objective, optimizer, parts.plan.deepspeed_config)
    if start.saved:
        with world.raise_together("restoring the optimizer"):
            restore_optimizer(engine, parts.source.model, start.tensors, updates=start.saved.updates)
    start_id = world.broadcast_object(uuid.uuid4().hex)
    backend = make_backend(parts, whole_model, start_id)
    world.save_before_stopping()
    backend.verify_weights(start.finished_steps)
    feed = _feed(parts)
    metrics, attempt = _claim(parts, loaded, backend, start_id, inventory.warnings)
    window = Window(engine, parts.plan, world, feed, dummy_segment)
    health = HealthWatch(parts.config.stage2_ab.channel_b.health)
    sampled = sampled_or_replayed(parts, backend, start_id)
    if start.saved:
        window.start_at(start.finished_steps, start.saved.progress["bad_steps"])
        health.start_at(start.saved.progress["health"])
        restore_random(start.random(world.rank), world.device)
    return Run(
        plan=parts.plan,
        folder=parts.folder,
        world=world,
        window=window,
        channels={"A": channel_a, "B": _rollout_matching(parts, sampled, start_id, attempt)},
        metrics=metrics,
        health=health,
        best=_best(parts),
        evaluate=_evaluation(parts, backend, metrics, attempt) if parts.datasets.validation else None,
        verify_weights=backend.verify_weights,
        settle=backend.settle,
        stop_reading=feed.close,
        checkpoints=Checkpoints(
            parts.folder.checkpoints,
            parts.source.folder,
            parts.source.image_processor,
            engine,
            whole_model,
            world,
            section=parts.config.checkpoint,
            warn=metrics.warn,
            newest=start.newest_in(parts.folder.checkpoints),
            detector=of_config(parts.config),
        ),
        facts=parts.facts,
        first_step=start.finished_steps,
        first_evaluation=_evaluates_first(parts),
        opening=opening_lines(parts.config, parts.plan, inventory, attempt),
    )


def _feed(parts: Parts) -> Feed:
    data, seed, train = parts.config.data, parts.config.training.seed, parts.datasets.train
    reader = Reader(
        records=train,
        order=SampleOrder(seed, len(train), parts.plan.num_records_used),
        encoder=parts.encoder,
        asked=parts.asked_train,
        seed=seed,
        shuffle_objects=data.object_order == "random",
        skip_bad=data.on_bad_sample == SKIP,
    )
    return Feed(reader, parts.plan, parts.world.rank, workers=data.workers, check_stop=parts.world.check_stop)


def _expectation(parts: Parts) -> Expectation:
    return Expectation(
        get_codec(parts.config.data.codec),
        parts.vocabulary,
        position_index(parts.source.model),
        num_passes=parts.config.stage2_ab.n_softctx_iter,
        desc_ce_weight=parts.config.stage2_ab.desc_ce_weight,
        num_noise=parts.config.stage2_ab.noise_objects,
        seed=parts.config.training.seed,
        max_length=parts.config.training.global_max_length,
        skip_overlong=parts.config.data.on_overlong == SKIP,
    )


def _rollout_matching(parts: Parts, backend: RolloutBackend, start_id: str, attempt: int) -> RolloutMatching:
    section = parts.config.stage2_ab
    log = RolloutLog(parts.folder.rollouts, parts.world.rank, attempt, parts.vocabulary.text_of)
    return RolloutMatching(
        backend,
        start_id,
        log if parts.config.logging.rollouts else lambda step, rollouts: None,
        codec=get_codec(parts.config.data.codec),
        vocabulary=parts.vocabulary,
        positions=position_index(parts.source.model),
        section=parts.config.rollout_matching,
        targets=section.channel_b,
        desc_ce_weight=section.desc_ce_weight,
        max_length=parts.config.training.global_max_length,
        skip_overlong=parts.config.data.on_overlong == SKIP,
        skip_refused=parts.config.data.on_bad_sample == SKIP,
    )


def _claim(
    parts: Parts, loaded: LoadedConfig, backend: RolloutBackend, start_id: str, warnings: Sequence[str]
) -> tuple[Metrics, int]:
    """Make the run folder ours and open the sinks in it; if a sink cannot be opened, give the folder back.

    Returns: the metrics, and which start of the run this is, from 1.
    """
    sinks: list[Sink] = []
    attempt = 1
    codec = get_codec(parts.config.data.codec)
    sampling = sampling_record(backend, parts.config.rollout_matching, parts.config.evaluation.decoding, codec)
    hosts = parts.world.gather(socket.gethostname())
    with parts.world.raise_together("making the run folder"):
        if parts.world.rank == 0:
            beside = {
                SAMPLING_FILE: sampling,
                ORIGINS_FILE: loaded.origins,
                ENVIRONMENT_FILE: environment(hosts, parts.world.device),
            }
            parts.folder.claim(loaded.resolved, beside, resumes=parts.start.resumes)
            try:
                attempt, sinks = _begin(parts, start_id, loaded.resolved, warnings)
            except BaseException:
                parts.folder.abandon(resumes=parts.start.resumes)
                raise
    attempt = parts.world.broadcast_object(attempt)
    every_steps, channel_for_step = parts.config.logging.every_steps, parts.plan.channel_for_step
    return Metrics(sinks, every_steps, channel_for_step, attempt=attempt), attempt


def _begin(
    parts: Parts, start_id: str, config: dict[str, Any], warnings: Sequence[str]
) -> tuple[int, list[Sink]]:
    """In the folder that is ours."""
    with explained(parts.folder.path):
        if parts.start.resumes:
            set_aside(parts.folder.checkpoints, parts.start.saved)
        attempt = parts.folder.begin_attempt(start_id, parts.start.finished_steps)
        return attempt, _open_sinks(parts, attempt, config, warnings)


def _open_sinks(parts: Parts, attempt: int, config: dict[str, Any], warnings: Sequence[str]) -> list[Sink]:
    sinks: list[Sink] = [
        JsonlSink(parts.folder.metrics),
        WarningsSink(parts.folder.warnings, warnings),
        ConsoleSink(sys.stdout, parts.plan.total_steps),
    ]
    tracked = TrackedRun(
        name=parts.folder.path.name,
        folder=parts.folder.path,
        config=config,
        finished_steps=parts.start.finished_steps,
        attempt=attempt,
    )

    def warn(text: str) -> None:
        for sink in sinks:
            sink.warning(text)

    return [*sinks, *open_trackers(parts.config.logging.trackers, tracked, warn)]


def _evaluation(
    parts: Parts, backend: RolloutBackend, metrics: Metrics, attempt: int
) -> Callable[[int], dict[str, float]]:
    evaluator = Evaluator(
        parts.datasets.validation,
        lambda record, draw: parts.encoder.encode(parts.asked_validation(record, draw), draw),
        backend,
        evaluation_sampling(
            parts.config.rollout_matching, parts.config.evaluation.decoding, get_codec(parts.config.data.codec)
        ),
        codec=get_codec(parts.config.data.codec),
        vocabulary=parts.vocabulary,
        world=parts.world,
        pictures=parts.folder.pictures,
        num_pictures=parts.config.evaluation.num_pictures,
        warn=metrics.warn,
        answers=parts.folder.evaluations,
        attempt=attempt,
        show=metrics.record_pictures,
    )
    return lambda finished_steps: evaluator.run(finished_steps).figures


def _evaluates_first(parts: Parts) -> bool:
    """At the start of a run if the config says so; after a checkpoint if its evaluation was cut off."""
    finished, plan = parts.start.finished_steps, parts.plan
    if not finished:
        return plan.evaluate.at_start
    return plan.evaluate.due(finished - 1) and all(one.step != finished for one in _evaluations(parts))


def _best(parts: Parts) -> BestWatch:
    """Goes on from the evaluations of the steps that this run goes on after."""
    before = [one for one in _evaluations(parts) if one.step <= parts.start.finished_steps]
    return BestWatch(parts.config.checkpoint.keep_best, parts.config.evaluation.stop_after, before)


def _evaluations(parts: Parts) -> tuple[EvaluationRecord, ...]:
    """Those that the run folder knows of; a run that forks another one has none of its own."""
    return read_history(parts.folder.metrics).evaluations if parts.folder.metrics.exists() else ()


def _inventory(parts: Parts) -> Inventory:
    """To be taken before DeepSpeed has the model: ZeRO 3 leaves no parameter to be counted."""
    parameters = list(parts.source.model.parameters())
    recording = parts.recording
    return Inventory(
        parameters=sum(parameter.numel() for parameter in parameters),
        trained_parameters=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        adapted_layers=len(adapters_of(parts.source.model)),
        records=len(parts.datasets.train),
        held_out=len(parts.datasets.validation),
        run_folder=parts.folder.path,
        recording=None if recording is None else (len(recording), recording.folder),
        operators=ops.implementation(),
        start=parts.start.words(parts.plan.total_steps),
        warnings=(
            *parts.start.notes,
            *run_warnings(parts.config, parts.plan),
            *(*parts.source.warnings, *parts.encoder.warnings),
            *data_warnings(parts.config.data, parts.datasets),
        ),
    )

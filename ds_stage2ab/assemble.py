"""Composition root: config and ranks -> a run ready to loop. Builds everything, loops over nothing."""

import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ds_stage2ab import ops
from ds_stage2ab.carriers import Record
from ds_stage2ab.channels.expectation import Expectation
from ds_stage2ab.channels.rollout_matching import RolloutMatching
from ds_stage2ab.codec.text import get_codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.config.load import LoadedConfig
from ds_stage2ab.config.rules import rollout_fits_length
from ds_stage2ab.config.sections import Config
from ds_stage2ab.config.servers import api_key
from ds_stage2ab.data.datasets import SKIP, Datasets, check_descriptions, data_warnings, read_datasets
from ds_stage2ab.data.encode import Encoder
from ds_stage2ab.data.feed import Feed, Reader
from ds_stage2ab.data.same_inputs import assert_same_records, assert_same_start
from ds_stage2ab.data.stream import SampleOrder, evaluation_draw
from ds_stage2ab.engine.build import (
    Checkpoint,
    build_engine,
    build_optimizer,
    embedding_holds_coordinates,
    load_checkpoint,
    position_index,
)
from ds_stage2ab.engine.checkpoint import Checkpoints
from ds_stage2ab.engine.run import Run
from ds_stage2ab.engine.run_folder import RunFolder, explained
from ds_stage2ab.engine.tuner import FULL, adapters_of, add_adapters, freeze_parts, merged_tensors
from ds_stage2ab.engine.whole_model import WholeModel
from ds_stage2ab.engine.window import Window
from ds_stage2ab.evaluation.evaluator import Evaluator
from ds_stage2ab.losses.objective import Objective
from ds_stage2ab.metrics.health_watch import HealthWatch
from ds_stage2ab.metrics.recorder import Metrics
from ds_stage2ab.metrics.sinks import ConsoleSink, JsonlSink, Sink, TensorBoardSink
from ds_stage2ab.model_folder.checks import check_folder
from ds_stage2ab.plan import RunPlan, batch_shape, make_plan
from ds_stage2ab.preflight.opening import Inventory, opening_lines
from ds_stage2ab.preflight.warnings import run_warnings
from ds_stage2ab.rollout.base import RolloutBackend, evaluation_sampling, sampling_record
from ds_stage2ab.rollout.hf import HfBackend
from ds_stage2ab.rollout.record import RolloutLog
from ds_stage2ab.rollout.replay import Recording, ReplayBackend, read_recording
from ds_stage2ab.rollout.server.chat import Conversation
from ds_stage2ab.rollout.server.connect import open_servers
from ds_stage2ab.rollout.server.handshake import Requirements
from ds_stage2ab.rollout.server.weight_sync import usable_transfers
from ds_stage2ab.runtime.ranks import World

PARTITIONED = 3
"""The ZeRO stage that leaves a part of each parameter on every rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the rest of a run is built from."""

    config: Config
    world: World
    plan: RunPlan
    datasets: Datasets
    source: Checkpoint
    vocabulary: Vocabulary
    encoder: Encoder
    folder: RunFolder
    longest_prompt: int
    # tokens, of the records that the model answers
    recording: Recording | None
    # what Channel B replays; None: its rollouts are sampled


def assemble(loaded: LoadedConfig, world: World) -> Run:
    """Build a run; the run folder is claimed last, when all that can be known to be good is, servers included."""
    torch.manual_seed(loaded.config.training.seed)
    parts = _read(loaded, world)
    opening = opening_lines(parts.config, parts.plan, _inventory(parts))
    whole_model = WholeModel(parts.source.model, world, is_partitioned=parts.plan.zero_stage == PARTITIONED)
    channel_a = _expectation(parts)
    dummy_segment = channel_a.dummy_segment(parts.encoder.blank())
    objective = Objective(parts.source.model, torch.tensor(parts.vocabulary.coordinate_ids), parts.config.stage2_ab)
    optimizer = build_optimizer(objective, parts.config.training)
    engine = build_engine(objective, optimizer, parts.plan.deepspeed_config)
    start_id = world.broadcast_object(uuid.uuid4().hex)
    backend = _backend(parts, whole_model, start_id)
    backend.verify_weights(0)
    rollout_matching = _rollout_matching(parts, _sampled_or_replayed(parts, backend, start_id), start_id)
    feed = _feed(parts)
    metrics = _claim(parts, loaded, backend)
    return Run(
        plan=parts.plan,
        folder=parts.folder,
        world=world,
        window=Window(engine, parts.plan, world, feed, dummy_segment),
        channels={"A": channel_a, "B": rollout_matching},
        metrics=metrics,
        health=HealthWatch(parts.config.stage2_ab.channel_b.health),
        evaluate=_evaluation(parts, backend, metrics) if parts.datasets.validation else None,
        verify_weights=backend.verify_weights,
        stop_reading=feed.close,
        checkpoints=Checkpoints(
            parts.folder.checkpoints,
            parts.source.folder,
            parts.source.image_processor,
            engine,
            whole_model,
            world,
            keep_last=parts.config.checkpoint.keep_last,
            warn=metrics.warn,
        ),
        opening=opening,
    )


def _read(loaded: LoadedConfig, world: World) -> Parts:
    """Everything that comes from files, cheap checks first; nothing is written."""
    assert_same_start(loaded, loaded.config.model.path, world)
    folder, recording = _check_inputs(loaded, world)
    datasets = read_datasets(loaded.config, world)
    data = loaded.config.data
    assert_same_records([path for path in (data.train, data.validation) if path], world)
    with world.raise_together("loading the checkpoint"):
        return _load(loaded.config, world, datasets, folder, recording)


def _check_inputs(loaded: LoadedConfig, world: World) -> tuple[RunFolder, Recording | None]:
    """The run folder, not yet made, and the recording to be replayed, if any."""
    matching = loaded.config.rollout_matching
    folder = RunFolder(loaded.config.logging.root / loaded.name, locked=loaded.config.logging.lock)
    with world.raise_together("reading the config"):
        batch_shape(loaded.config.training, world.size)  # the batch rules need no file
        folder.refuse_earlier_run()
        if world.rank == 0:
            folder.try_out()
        check_folder(loaded.config.model.path)  # before the data, which takes longer
        api_key(matching.vllm.server.api_key_env if matching.rollout_backend == "vllm" else None)
        return folder, read_recording(matching.replay.run) if matching.rollout_backend == "replay" else None


def _load(
    config: Config, world: World, datasets: Datasets, folder: RunFolder, recording: Recording | None
) -> Parts:
    """The checkpoint with what trains of it, and the plan."""
    plan = make_plan(config, world.size, len(datasets.train))
    source = load_checkpoint(config.model, min_pixels=config.data.min_pixels, max_pixels=config.data.max_pixels)
    freeze_parts(source.model, config.model.freeze)
    vocabulary = Vocabulary.from_tokenizer(source.tokenizer)
    embedding_holds_coordinates(source, vocabulary)
    check_descriptions(datasets.train, vocabulary)
    if config.tuner.type != FULL:
        add_adapters(
            source.model,
            config.tuner,
            config.model.freeze,
            vocabulary.coordinate_ids,
            seed=config.training.seed,
            source=source.folder,
        )
    encoder = Encoder(
        source.tokenizer,
        source.image_processor,
        vocabulary,
        system_prompt=config.data.system_prompt,
        user_prompt=config.data.user_prompt,
    )
    answered = [*datasets.validation, *(datasets.train if plan.b_steps else ())]
    return Parts(
        config=config,
        world=world,
        plan=plan,
        datasets=datasets,
        source=source,
        vocabulary=vocabulary,
        encoder=encoder,
        folder=folder,
        longest_prompt=_longest_prompt(config, answered, source, encoder),
        recording=recording,
    )


def _longest_prompt(config: Config, answered: list[Record], source: Checkpoint, encoder: Encoder) -> int:
    """Tokens of the longest prompt that the model answers, behind which an answer must fit (rule 4); 0 if none."""
    longest = encoder.longest_prompt(answered)
    if longest:
        rollout_fits_length(
            longest,
            config.rollout_matching.max_new_tokens,
            config.training.global_max_length,
            source.model.config.text_config.max_position_embeddings,
        )
    return longest


def _feed(parts: Parts) -> Feed:
    data, seed, train = parts.config.data, parts.config.training.seed, parts.datasets.train
    reader = Reader(
        records=train,
        order=SampleOrder(seed, len(train), parts.plan.num_records_used),
        encoder=parts.encoder,
        seed=seed,
        shuffle_objects=data.object_order == "random",
        skip_bad=data.on_bad_sample == SKIP,
    )
    return Feed(reader, parts.plan, parts.world.rank, workers=data.workers)


def _expectation(parts: Parts) -> Expectation:
    return Expectation(
        get_codec(parts.config.data.codec),
        parts.vocabulary,
        position_index(parts.source.model),
        num_passes=parts.config.stage2_ab.n_softctx_iter,
        desc_ce_weight=parts.config.stage2_ab.desc_ce_weight,
        max_length=parts.config.training.global_max_length,
        skip_overlong=parts.config.data.on_overlong == SKIP,
    )


def _backend(parts: Parts, whole_model: WholeModel, start_id: str) -> RolloutBackend:
    if parts.config.rollout_matching.rollout_backend == "vllm":
        return _servers(parts, whole_model, start_id)
    return HfBackend(
        whole_model,
        parts.vocabulary,
        position_index(parts.source.model),
        decode_batch_size=parts.config.rollout_matching.decode_batch_size,
        start_id=start_id,
        seed=parts.config.training.seed,
    )


def _servers(parts: Parts, whole_model: WholeModel, start_id: str) -> RolloutBackend:
    """The largest image is what servers are tried with, in the handshake and in every probe: limits show there."""
    config, data = parts.config, parts.config.data
    with parts.world.raise_together("reading the sample that the rollout servers are tried with"):
        sample = parts.encoder.largest(parts.datasets.train, evaluation_draw(0), skip_bad=data.on_bad_sample == SKIP)
    requirements = Requirements(
        conversation=Conversation(
            system_prompt=data.system_prompt,
            user_prompt=data.user_prompt,
            forbidden=tuple(parts.source.tokenizer.convert_ids_to_tokens(list(parts.vocabulary.vision_ids))),
            stop_id=parts.vocabulary.stop_id,
            coordinate_ids=parts.vocabulary.coordinate_ids,
        ),
        vocabulary=parts.vocabulary,
        sample=sample,
        decode_batch_size=config.rollout_matching.decode_batch_size,
        room=parts.longest_prompt + config.rollout_matching.max_new_tokens,
        precision=config.model.precision,
        infer_timeout_s=parts.plan.infer_timeout_s,
        transfers=usable_transfers(parts.world.device),
    )
    return open_servers(
        config.rollout_matching.vllm,
        requirements,
        position_index(parts.source.model),
        whole_model,
        lambda: merged_tensors(whole_model.layout),
        parts.world,
        start_id=start_id,
        seed=config.training.seed,
        probe_tolerance=parts.plan.probe_tolerance,
    )


def _sampled_or_replayed(parts: Parts, backend: RolloutBackend, start_id: str) -> RolloutBackend:
    """The backend of Channel B. Evaluations are not recorded, so `backend` samples those in a replay too."""
    if parts.recording is None:
        return backend
    return ReplayBackend(parts.recording, start_id=start_id, seed=parts.config.training.seed)


def _rollout_matching(parts: Parts, backend: RolloutBackend, start_id: str) -> RolloutMatching:
    section = parts.config.stage2_ab
    log = RolloutLog(parts.folder.rollouts, parts.world.rank)
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


def _claim(parts: Parts, loaded: LoadedConfig, backend: RolloutBackend) -> Metrics:
    """Make the run folder ours and open the sinks in it; if a sink cannot be opened, give the folder back."""
    sinks: list[Sink] = []
    sampling = sampling_record(backend, parts.config.rollout_matching, parts.config.evaluation.decoding)
    with parts.world.raise_together("making the run folder"):
        if parts.world.rank == 0:
            parts.folder.claim(loaded.resolved, sampling)
            try:
                with explained(parts.folder.path):
                    sinks = _open_sinks(parts)
            except BaseException:
                parts.folder.abandon()
                raise
    return Metrics(sinks, parts.config.logging.every_steps, parts.plan.channel_for_step)


def _open_sinks(parts: Parts) -> list[Sink]:
    sinks: list[Sink] = [JsonlSink(parts.folder.metrics), ConsoleSink(sys.stdout, parts.plan.total_steps)]
    if parts.config.logging.tensorboard:
        sinks.append(TensorBoardSink(parts.folder.tensorboard))
    return sinks


def _evaluation(parts: Parts, backend: RolloutBackend, metrics: Metrics) -> Callable[[int], dict[str, float]]:
    evaluator = Evaluator(
        parts.datasets.validation,
        parts.encoder.encode,
        backend,
        evaluation_sampling(parts.config.rollout_matching, parts.config.evaluation.decoding),
        codec=get_codec(parts.config.data.codec),
        vocabulary=parts.vocabulary,
        world=parts.world,
        pictures=parts.folder.pictures,
        num_pictures=parts.config.evaluation.num_pictures,
        warn=metrics.warn,
    )
    return lambda finished_steps: evaluator.run(finished_steps).figures


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
        warnings=(
            *run_warnings(parts.config, parts.plan),
            *(*parts.source.warnings, *parts.encoder.warnings),
            *data_warnings(parts.config.data, parts.datasets),
        ),
    )

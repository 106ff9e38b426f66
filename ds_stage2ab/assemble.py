"""Composition root: config and ranks -> a run ready to loop. Builds everything, loops over nothing."""

import sys
import uuid
from dataclasses import dataclass

import torch

from ds_stage2ab import ops
from ds_stage2ab.carriers import StepResult
from ds_stage2ab.channels.expectation import Expectation
from ds_stage2ab.channels.rollout_matching import RolloutMatching
from ds_stage2ab.codec.bins import NUM_BINS
from ds_stage2ab.codec.text import get_codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.config.batch import counted
from ds_stage2ab.config.load import LoadedConfig
from ds_stage2ab.config.rules import rollout_fits_length
from ds_stage2ab.config.sections import Config
from ds_stage2ab.data.datasets import SKIP, Datasets, data_warnings, read_datasets
from ds_stage2ab.data.encode import Encoder
from ds_stage2ab.data.feed import Feed, Reader
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
from ds_stage2ab.engine.run_folder import RunFolder
from ds_stage2ab.engine.tuner import FULL, adapters_of, add_adapters, freeze_parts, merged_tensors
from ds_stage2ab.engine.whole_model import WholeModel
from ds_stage2ab.engine.window import Channel, Window
from ds_stage2ab.evaluation.evaluator import Evaluator
from ds_stage2ab.losses.objective import Objective
from ds_stage2ab.metrics.health_watch import HealthWatch
from ds_stage2ab.metrics.recorder import Metrics
from ds_stage2ab.metrics.sinks import ConsoleSink, JsonlSink, Sink, TensorBoardSink
from ds_stage2ab.plan import RunPlan, batch_shape, make_plan
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
MAX_SKIPPED_TOLD = 3
"""Skipped samples of a step whose reason is told; `metrics.jsonl` names all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything that the loop uses."""

    plan: RunPlan
    folder: RunFolder
    world: World
    window: Window
    channels: dict[str, Channel]
    metrics: Metrics
    health: HealthWatch
    backend: RolloutBackend
    evaluator: Evaluator | None
    checkpoints: Checkpoints
    facts: tuple[tuple[str, str], ...]
    # what the opening words say: (what, value)

    def record(self, step: int, channel: str, result: StepResult) -> None:
        """Report a step; a disk that is full on rank 0 is every rank's failure.

        Raises:
            TrainingFault: the rollouts of Channel B have become what the config says to stop for.
        """
        with self.world.raise_together("recording the metrics"):
            self.metrics.record(step, channel, result)
        if result.fault:
            self.metrics.warn(result.fault)
        for one in result.skipped[:MAX_SKIPPED_TOLD]:
            self.metrics.warn(f"step {step + 1} skipped sample {one.sample_id}: {one.why}")
        for warning in self.health.after_step(step, channel, result.terms):
            self.metrics.warn(warning)

    def record_evaluation(self, finished_steps: int, values: dict[str, float]) -> None:
        """Report an evaluation, as `record` does."""
        with self.world.raise_together("recording the metrics"):
            self.metrics.record_evaluation(finished_steps, values)
        for warning in self.health.after_evaluation(values):
            self.metrics.warn(warning)

    def save_finished(self) -> None:
        """Save the last finished step, if no checkpoint holds it: the weights are good, whatever ended the run."""
        finished = self.window.finished_steps
        if finished > self.checkpoints.newest:
            self.checkpoints.save(finished)

    def close(self) -> None:
        """Close what is open, whatever happened in the loop."""
        try:
            self.metrics.close()
        finally:
            self.folder.release()


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
    # what Channel B replays; None: its rollouts are drawn


def assemble(loaded: LoadedConfig, world: World) -> Run:
    """Build a run; the run folder is claimed last, when all that can be known to be good is, servers included."""
    torch.manual_seed(loaded.config.training.seed)
    parts = _read(loaded, world)
    facts = _facts(parts)  # counts parameters, of which ZeRO 3 leaves none
    whole_model = WholeModel(parts.source.model, world, is_partitioned=parts.plan.zero_stage == PARTITIONED)
    channel_a = _expectation(parts)
    dummy_segment = channel_a.segment(parts.encoder.blank())
    objective = Objective(parts.source.model, torch.tensor(parts.vocabulary.coordinate_ids), parts.config.stage2_ab)
    optimizer = build_optimizer(objective, parts.config.training)
    engine = build_engine(objective, optimizer, parts.plan.deepspeed_config)
    start_id = world.broadcast_object(uuid.uuid4().hex)
    backend = _backend(parts, whole_model, start_id)
    backend.verify_weights(0)
    rollout_matching = _rollout_matching(parts, _drawn_or_replayed(parts, backend, start_id), start_id)
    metrics = _claim(parts, loaded, backend)
    return Run(
        plan=parts.plan,
        folder=parts.folder,
        world=world,
        window=Window(engine, parts.plan, world, _feed(parts), dummy_segment),
        channels={"A": channel_a, "B": rollout_matching},
        metrics=metrics,
        health=HealthWatch(parts.config.stage2_ab.channel_b.health),
        backend=backend,
        evaluator=_evaluator(parts, backend) if parts.datasets.validation else None,
        checkpoints=Checkpoints(
            parts.folder.checkpoints,
            parts.source.folder,
            parts.source.image_processor,
            engine,
            whole_model,
            world,
            keep_last=parts.config.checkpoint.keep_last,
        ),
        facts=facts,
    )


def _read(loaded: LoadedConfig, world: World) -> Parts:
    """Everything that comes from files, cheap checks first; nothing is written."""
    config = loaded.config
    folder = RunFolder(config.logging.root / loaded.name)
    with world.raise_together("reading the config"):
        matching = config.rollout_matching
        batch_shape(config.training, world.size)  # the batch rules need no file
        folder.refuse_earlier_run()
        recording = read_recording(matching.replay.run) if matching.rollout_backend == "replay" else None
    datasets = read_datasets(config, world)
    with world.raise_together("loading the checkpoint"):
        plan = make_plan(config, world.size, len(datasets.train))
        source = load_checkpoint(config.model, min_pixels=config.data.min_pixels, max_pixels=config.data.max_pixels)
        freeze_parts(source.model, config.model.freeze)
        vocabulary = Vocabulary.from_tokenizer(source.tokenizer)
        embedding_holds_coordinates(source, vocabulary)
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
        longest = max((encoder.prompt_length(*size) for size in {(r.width, r.height) for r in answered}), default=0)
        if answered:
            rollout_fits_length(
                longest,
                config.rollout_matching.max_new_tokens,
                config.training.global_max_length,
                source.model.config.text_config.max_position_embeddings,
            )
    return Parts(
        config=config,
        world=world,
        plan=plan,
        datasets=datasets,
        source=source,
        vocabulary=vocabulary,
        encoder=encoder,
        folder=folder,
        longest_prompt=longest,
        recording=recording,
    )


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
        parts.source.model,
        position_index(parts.source.model),
        whole_model,
        lambda: merged_tensors(whole_model.layout),
        parts.world,
        start_id=start_id,
        seed=config.training.seed,
        probe_tolerance=parts.plan.probe_tolerance,
    )


def _drawn_or_replayed(parts: Parts, backend: RolloutBackend, start_id: str) -> RolloutBackend:
    """Whom Channel B asks: evaluations are not recorded, so the backend draws those in a replay too."""
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


def _evaluator(parts: Parts, backend: RolloutBackend) -> Evaluator:
    return Evaluator(
        parts.datasets.validation,
        parts.encoder.encode,
        backend,
        evaluation_sampling(parts.config.rollout_matching, parts.config.evaluation.decoding),
        codec=get_codec(parts.config.data.codec),
        vocabulary=parts.vocabulary,
        world=parts.world,
        pictures=parts.folder.pictures,
        num_pictures=parts.config.evaluation.num_pictures,
    )


def _facts(parts: Parts) -> tuple[tuple[str, str], ...]:
    plan, datasets = parts.plan, parts.datasets
    parameters = list(parts.source.model.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    per_epoch = plan.num_records_used / plan.effective_batch_size
    warnings = (*run_warnings(parts.config, plan), *data_warnings(parts.config.data, datasets))
    length = f"packs of at most {plan.global_max_length} tokens" if plan.packing else "one sample per pack"
    return (
        ("model", f"{parts.source.folder}, {sum(p.numel() for p in parameters):,} parameters, {trained:,} trained"),
        *_tuner_facts(parts),
        ("data", f"{len(datasets.train):,} records, {len(datasets.validation):,} held out"),
        ("steps", f"{plan.total_steps:,} = {plan.epochs:.3g} epochs of {per_epoch:.5g}; {length}"),
        ("schedule", f"{plan.total_steps - plan.b_steps:,} A steps, {plan.b_steps:,} B steps"),
        ("rollouts", _rollout_words(parts)),
        ("engine", f"DeepSpeed, ZeRO stage {plan.zero_stage}, {parts.config.model.precision}"),
        ("run folder", str(parts.folder.path)),
        *(("warning", warning) for warning in warnings),
    )


def _tuner_facts(parts: Parts) -> list[tuple[str, str]]:
    tuner, layers = parts.config.tuner, len(adapters_of(parts.source.model))
    if not layers:
        return []
    words = f"{tuner.type}, rank {tuner.lora_rank}, alpha {tuner.lora_alpha:g}, on {layers} linear layers"
    rows = f", and {NUM_BINS:,} rows of the embedding" if tuner.trainable_token_rows else ""
    return [("tuner", words + rows)]


def _rollout_words(parts: Parts) -> str:
    section = parts.config.rollout_matching
    temperature = section.decoding.temperature
    how = f"temperature {temperature:g}" if temperature else "greedy"
    who, place = section.rollout_backend, "rank"
    if who == "vllm":  # this is said when the handshake is over
        servers = counted(len(section.vllm.server.servers), "server")
        who, place = f"vllm, {servers} that passed the handshake", "replica"
    drawn = f"{who}, at most {section.decode_batch_size} at once on each {place}, {how}"
    if parts.recording is not None:
        made = f"targets are made anew ({parts.config.stage2_ab.channel_b.target})"
        drawn = f"replay, {len(parts.recording):,} that stand in {parts.recording.folder}; {made}"
    return f"{drawn}; packing operators: {ops.implementation()}"

"""Composition root: config and ranks -> a run ready to loop. Builds everything, loops over nothing."""

import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ds_stage2ab.carriers import Record, Sample
from ds_stage2ab.channels.expectation import Expectation
from ds_stage2ab.codec.text import get_codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.config.load import LoadedConfig
from ds_stage2ab.config.sections import Config
from ds_stage2ab.data.encode import Encoder
from ds_stage2ab.data.images import check_image
from ds_stage2ab.data.records import read_records
from ds_stage2ab.data.stream import SampleOrder, draws_of, shuffled_objects
from ds_stage2ab.engine.build import (
    Checkpoint,
    build_engine,
    build_optimizer,
    freeze_parts,
    load_checkpoint,
    position_index,
)
from ds_stage2ab.engine.checkpoint import Checkpoints
from ds_stage2ab.engine.run_folder import RunFolder
from ds_stage2ab.engine.window import Channel, Window
from ds_stage2ab.evaluation import Evaluator
from ds_stage2ab.losses.objective import Objective
from ds_stage2ab.metrics.recorder import Metrics
from ds_stage2ab.metrics.sinks import ConsoleSink, JsonlSink, Sink, TensorBoardSink
from ds_stage2ab.plan import RunPlan, make_plan
from ds_stage2ab.rollout.base import GREEDY, Sampling
from ds_stage2ab.rollout.hf import HfBackend
from ds_stage2ab.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything that the loop uses."""

    plan: RunPlan
    folder: RunFolder
    world: World
    window: Window
    channels: dict[str, Channel]
    metrics: Metrics
    evaluator: Evaluator | None
    checkpoints: Checkpoints
    facts: tuple[tuple[str, str], ...]
    # what the opening words say: (what, value)

    def close(self) -> None:
        """Close what is open, whatever happened in the loop."""
        self.metrics.close()
        if self.world.rank == 0:
            self.folder.release()


@dataclass(frozen=True, slots=True, kw_only=True)
class Datasets:
    """Checked records."""

    train: list[Record]
    validation: list[Record]
    # empty when none is configured


def read_datasets(config: Config, world: World) -> Datasets:
    """Read both sets on every rank, and look at every image's header, each rank at its share.

    Raises:
        DataError: a line, a box or an image is not what the data contract says.
    """
    data = config.data
    with world.agree_on_failure():
        train, validation = (
            [] if path is None else read_records(path, image_root=data.image_root, box_format=data.box_format)
            for path in (data.train, data.validation)
        )
        validation = validation[: config.evaluation.max_samples]
    with world.agree_on_failure():
        for record in [*train, *validation][world.rank :: world.size]:
            check_image(record)
    return Datasets(train=train, validation=validation)


def assemble(loaded: LoadedConfig, world: World) -> Run:
    """Build a run; the run folder is claimed only when config, data and checkpoint are known to be good."""
    config = loaded.config
    with world.agree_on_failure():
        make_plan(config, world.size, config.training.effective_batch_size)  # the batch rules, before any file
    datasets = read_datasets(config, world)
    with world.agree_on_failure():
        plan = make_plan(config, world.size, len(datasets.train))
        source = load_checkpoint(config.model, min_pixels=config.data.min_pixels, max_pixels=config.data.max_pixels)
        vocabulary = Vocabulary.from_tokenizer(source.tokenizer)
        freeze_parts(source.model, config.model.freeze)
    folder = RunFolder(config.logging.root / loaded.name)
    with world.agree_on_failure():
        if world.rank == 0:
            folder.claim(loaded.resolved)
    return _build(loaded, world, plan, datasets, source, vocabulary, folder)


def _build(
    loaded: LoadedConfig,
    world: World,
    plan: RunPlan,
    datasets: Datasets,
    source: Checkpoint,
    vocabulary: Vocabulary,
    folder: RunFolder,
) -> Run:
    config = loaded.config
    objective = Objective(source.model, torch.tensor(vocabulary.coordinate_ids), config.stage2_ab)
    engine = build_engine(objective, build_optimizer(objective, config.training), plan.deepspeed_config)
    encoder = Encoder(
        source.tokenizer,
        source.image_processor,
        vocabulary,
        system_prompt=config.data.system_prompt,
        user_prompt=config.data.user_prompt,
    )
    return Run(
        plan=plan,
        folder=folder,
        world=world,
        window=Window(engine, plan, world, _draw(config, world, plan, datasets, encoder)),
        channels={"A": _expectation(config, vocabulary, source)},
        metrics=_metrics(config, folder, plan, world),
        evaluator=_evaluator(config, world, datasets, encoder, source, vocabulary, folder),
        checkpoints=Checkpoints(
            folder.checkpoints, source.folder, engine, source.model, world, keep_last=config.checkpoint.keep_last
        ),
        facts=_facts(config, plan, datasets, source, folder),
    )


def _draw(
    config: Config, world: World, plan: RunPlan, datasets: Datasets, encoder: Encoder
) -> Callable[[int, int], list[Sample]]:
    order = SampleOrder(config.training.seed, len(datasets.train), plan.effective_batch_size, "drop")

    def draw(step: int, micro_step: int) -> list[Sample]:
        draws = draws_of(
            step,
            world.rank,
            micro_step,
            effective_batch_size=plan.effective_batch_size,
            num_ranks=world.size,
            per_device_batch_size=plan.per_device,
        )
        records = [datasets.train[order.record_of(g)] for g in draws]
        if config.data.object_order == "random":
            pairs = zip(records, draws, strict=True)
            records = [shuffled_objects(record, config.training.seed, g) for record, g in pairs]
        return [encoder.encode(record, g) for record, g in zip(records, draws, strict=True)]

    return draw


def _expectation(config: Config, vocabulary: Vocabulary, source: Checkpoint) -> Expectation:
    return Expectation(
        get_codec(config.data.codec),
        vocabulary,
        position_index(source.model),
        num_passes=config.stage2_ab.n_softctx_iter,
        desc_ce_weight=config.stage2_ab.desc_ce_weight,
        max_length=config.training.global_max_length,
    )


def _metrics(config: Config, folder: RunFolder, plan: RunPlan, world: World) -> Metrics:
    sinks: list[Sink] = []
    if world.rank == 0:
        sinks = [JsonlSink(folder.metrics), ConsoleSink(sys.stdout, plan.total_steps)]
        if config.logging.tensorboard:
            sinks.append(TensorBoardSink(folder.tensorboard))
    return Metrics(sinks, config.logging.every_steps)


def _evaluator(
    config: Config,
    world: World,
    datasets: Datasets,
    encoder: Encoder,
    source: Checkpoint,
    vocabulary: Vocabulary,
    folder: RunFolder,
) -> Evaluator | None:
    if not datasets.validation:
        return None
    section = config.rollout_matching
    start_id = world.from_first(uuid.uuid4().hex)
    backend = HfBackend(source.model, vocabulary, decode_batch_size=section.decode_batch_size, start_id=start_id)
    return Evaluator(
        datasets.validation,
        encoder.encode,
        backend,
        Sampling(**GREEDY, max_new_tokens=section.max_new_tokens),
        codec=get_codec(config.data.codec),
        vocabulary=vocabulary,
        world=world,
        pictures=folder.pictures,
        num_pictures=config.evaluation.num_pictures,
    )


def _facts(
    config: Config, plan: RunPlan, datasets: Datasets, source: Checkpoint, folder: RunFolder
) -> tuple[tuple[str, str], ...]:
    parameters = list(source.model.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    length = f"packs of at most {plan.global_max_length} tokens" if plan.packing else "one sample per pack"
    return (
        ("model", f"{source.folder}, {sum(p.numel() for p in parameters):,} parameters, {trainable:,} trained"),
        ("data", f"{len(datasets.train):,} records, {len(datasets.validation):,} held out"),
        ("steps", f"{plan.total_steps:,} = {plan.epochs:.3g} epochs of {plan.steps_per_epoch:,}; {length}"),
        ("engine", f"DeepSpeed, ZeRO stage {plan.zero_stage}, {config.model.precision}"),
        ("run folder", str(folder.path)),
        *(("warning", warning) for warning in plan.warnings),
    )

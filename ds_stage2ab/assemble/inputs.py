"""What a run is built from: everything that comes from files, read and checked."""

from dataclasses import dataclass
from typing import Any

from ds_stage2ab.carriers import Record
from ds_stage2ab.codec.text import get_codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.config.load import LoadedConfig
from ds_stage2ab.config.rules import rollout_fits_length
from ds_stage2ab.config.sections import Config
from ds_stage2ab.config.servers import api_key
from ds_stage2ab.data.asked import Asked
from ds_stage2ab.data.datasets import Datasets, assert_answerable, read_datasets
from ds_stage2ab.data.encode import Encoder
from ds_stage2ab.data.same_inputs import assert_same_records, assert_same_start
from ds_stage2ab.engine.build import (
    Checkpoint,
    embedding_holds_coordinates,
    load_checkpoint,
)
from ds_stage2ab.engine.facts import run_facts
from ds_stage2ab.engine.run_folder import RunFolder
from ds_stage2ab.engine.start import Start
from ds_stage2ab.engine.training_state import restore_weights
from ds_stage2ab.engine.tuner import FULL, add_adapters, freeze_parts
from ds_stage2ab.metrics.trackers import check_trackers
from ds_stage2ab.model_folder.checks import check_folder
from ds_stage2ab.plan import RunPlan, batch_shape, make_plan
from ds_stage2ab.rollout.replay import Recording, read_recording
from ds_stage2ab.runtime.ranks import World


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
    asked_train: Asked
    asked_validation: Asked
    folder: RunFolder
    longest_prompt: int
    # tokens, of the records that the model answers
    recording: Recording | None
    start: Start
    facts: dict[str, Any]
    # what must be as it was for a run to go on


def read_parts(loaded: LoadedConfig, world: World, start: Start) -> Parts:
    """Everything that comes from files, cheap checks first; nothing is written."""
    assert_same_start(loaded, loaded.config.model.path, world)
    folder, recording = _check_inputs(loaded, world, start)
    datasets = read_datasets(loaded.config, world)
    data = loaded.config.data
    assert_same_records([path for path in (data.train, data.validation) if path], world)
    with world.raise_together("comparing the run with the checkpoint"):
        facts = run_facts(loaded, world.size)
        start = start.compared(facts, loaded.origins)
    with world.raise_together("loading the checkpoint"):
        parts = _load(loaded.config, world, datasets, folder, recording, start, facts)
        if start.saved:
            restore_weights(parts.source.model, start.tensors)
    return parts


def _check_inputs(loaded: LoadedConfig, world: World, start: Start) -> tuple[RunFolder, Recording | None]:
    """The run folder, not yet made, and the recording to be replayed, if any."""
    matching = loaded.config.rollout_matching
    folder = RunFolder(loaded.config.logging.root / loaded.name, locked=loaded.config.logging.lock)
    with world.raise_together("reading the config"):
        batch_shape(loaded.config.training, world.size)  # the batch rules need no file
        if not start.resumes:
            folder.refuse_earlier_run()
        if world.rank == 0:
            folder.try_out()
            check_trackers(loaded.config.logging.trackers)
        check_folder(loaded.config.model.path)  # before the data, which takes longer
        api_key(matching.vllm.server.api_key_env if matching.rollout_backend == "vllm" else None)
        return folder, read_recording(matching.replay.run) if matching.rollout_backend == "replay" else None


def _load(
    config: Config,
    world: World,
    datasets: Datasets,
    folder: RunFolder,
    recording: Recording | None,
    start: Start,
    facts: dict[str, Any],
) -> Parts:
    """The checkpoint with what trains of it, and the plan."""
    plan = make_plan(config, world.size, len(datasets.train))
    source = load_checkpoint(config.model, min_pixels=config.data.min_pixels, max_pixels=config.data.max_pixels)
    freeze_parts(source.model, config.model.freeze)
    vocabulary = Vocabulary.from_tokenizer(source.tokenizer)
    embedding_holds_coordinates(source, vocabulary)
    assert_answerable([*datasets.train, *datasets.validation], vocabulary, get_codec(config.data.codec))
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
    words = (config.data.user_prompt, config.data.negative_classes, config.training.seed)
    asked_train, asked_validation = (Asked.of(some, *words) for some in (datasets.train, datasets.validation))
    answered = list(map(asked_validation.longest, datasets.validation))
    answered += map(asked_train.longest, datasets.train if plan.b_steps else ())
    return Parts(
        config=config,
        world=world,
        plan=plan,
        datasets=datasets,
        source=source,
        vocabulary=vocabulary,
        encoder=encoder,
        asked_train=asked_train,
        asked_validation=asked_validation,
        folder=folder,
        longest_prompt=_longest_prompt(config, answered, source, encoder),
        recording=recording,
        start=start,
        facts=facts,
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

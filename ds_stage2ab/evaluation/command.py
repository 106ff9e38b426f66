"""`ds-stage2ab evaluate`: the held-out figures of any checkpoint, without a training run.

Runs as one process, or under the launcher on several devices, which share the samples:
`deepspeed --no_local_rank --module ds_stage2ab evaluate --config FILE --checkpoint DIR`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from ds_stage2ab.carriers import Record
from ds_stage2ab.codec.text import get_codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.config.load import LoadedConfig
from ds_stage2ab.config.rules import VALIDATION, rollout_fits_length
from ds_stage2ab.config.sections import Config, ModelSection
from ds_stage2ab.data.asked import Asked
from ds_stage2ab.data.datasets import assert_answerable
from ds_stage2ab.data.encode import Encoder
from ds_stage2ab.data.images import check_image
from ds_stage2ab.data.records import Share, read_records
from ds_stage2ab.data.same_inputs import assert_same_records, assert_same_start
from ds_stage2ab.detector_file import differences
from ds_stage2ab.engine.build import embedding_holds_coordinates, load_checkpoint, position_index
from ds_stage2ab.errors import ConfigError, EnvironmentFault, printable
from ds_stage2ab.evaluation.evaluator import Evaluation, Evaluator
from ds_stage2ab.metrics.registry import METRICS
from ds_stage2ab.model_folder.checks import check_folder
from ds_stage2ab.model_folder.places import weights_folder
from ds_stage2ab.rollout.base import evaluation_sampling
from ds_stage2ab.rollout.hf import HfBackend
from ds_stage2ab.runtime.ranks import World


def evaluate_checkpoint(
    loaded: LoadedConfig, checkpoint: Path, world: World, pictures: Path | None, say: Callable[[str], None]
) -> Evaluation:
    """Evaluate a checkpoint on `data.validation`; the result is the same on every rank.

    Args:
        checkpoint: a Hugging Face folder, or a checkpoint of a run or a run, which have one inside.
        pictures: where rank 0 draws predictions over truth; None: nowhere.
        say: tells the user, on rank 0, which folder is evaluated, and what is odd.

    Raises:
        ConfigError: there is no validation data, prompt and answer do not fit, or the ranks have different configs.
        DataError: a line, a box or an image is not what the data contract says.
        EnvironmentFault: the folder holds no such checkpoint, or pictures cannot be written.
    """
    config, codec = loaded.config, get_codec(loaded.config.data.codec)
    with world.raise_together("reading the records"):
        section, records = _read(config, checkpoint, world, pictures)
    assert_same_start(loaded, section.path, world)
    assert_same_records([config.data.validation], world)
    with world.raise_together("loading the checkpoint"):
        for record in records[world.rank :: world.size]:
            check_image(record)
        source = load_checkpoint(section, min_pixels=config.data.min_pixels, max_pixels=config.data.max_pixels)
        vocabulary = Vocabulary.from_tokenizer(source.tokenizer)
        embedding_holds_coordinates(source, vocabulary)
        assert_answerable(records, vocabulary, codec)
        prompts = {"system_prompt": config.data.system_prompt, "user_prompt": config.data.user_prompt}
        encoder = Encoder(source.tokenizer, source.image_processor, vocabulary, **prompts)
        asked = Asked.of(records, config.data.user_prompt, config.data.negative_classes, config.training.seed)
        position_limit = source.model.config.text_config.max_position_embeddings
        longest = encoder.longest_prompt(map(asked.longest, records))
        limits = config.rollout_matching.max_new_tokens, config.training.global_max_length, position_limit
        rollout_fits_length(longest, *limits)
    if world.rank == 0:
        say(f"evaluating {source.folder}")
        for warning in (*source.warnings, *encoder.warnings, *differences(config, source.folder)):
            say(f"warning: {warning}")
    model = source.model.to(world.device)
    backend = HfBackend(
        lambda: nullcontext(model),
        vocabulary,
        position_index(source.model),
        decode_batch_size=config.rollout_matching.decode_batch_size,
        start_id="evaluate",
        seed=config.training.seed,
        codec=codec,
    )
    return Evaluator(
        records,
        lambda record, draw: encoder.encode(asked(record, draw), draw),
        backend,
        evaluation_sampling(config.rollout_matching, config.evaluation.decoding, codec),
        codec=codec,
        vocabulary=vocabulary,
        world=world,
        pictures=pictures or Path(),
        num_pictures=0 if pictures is None else config.evaluation.num_pictures,
        warn=lambda text: say(f"warning: {text}"),
    ).run(0)


def _try_out(pictures: Path) -> None:
    """Make the folder of the pictures and write in it, before the work that it is for."""
    try:
        pictures.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=pictures):
            pass
    except OSError as error:
        raise EnvironmentFault(
            f"pictures cannot be written there: {error.strerror}",
            where=f"--pictures {pictures}",
            fix="name a folder that you may write to",
        ) from error


def _read(
    config: Config, checkpoint: Path, world: World, pictures: Path | None
) -> tuple[ModelSection, list[Record]]:
    """The checkpoint's section, checked, and the records: cheap first."""
    if pictures is not None and world.rank == 0:
        _try_out(pictures)
    section = replace(config.model, path=weights_folder(checkpoint), gradient_checkpointing=False)
    check_folder(section.path)  # before the data, which takes longer
    return section, _held_out(config, (world.rank, world.size))


def _held_out(config: Config, share: Share) -> list[Record]:
    data = config.data
    if data.validation is None:
        raise ConfigError("there is nothing to evaluate on", where=VALIDATION, fix=f"set {VALIDATION} to a JSONL file")
    form = {"image_root": data.image_root, "box_format": data.box_format}
    records = read_records(data.validation, **form, share=share)
    return records[: config.evaluation.max_samples]


def as_data(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as JSON values."""
    return {"figures": evaluation.figures, "descriptions": [asdict(row) for row in evaluation.rows]}


def as_tables(evaluation: Evaluation) -> Sequence[Table]:
    """Two tables: the figures, and a row for each description."""
    figures = Table(title="the whole set", box=SIMPLE)
    figures.add_column("figure", no_wrap=True)
    figures.add_column("value", justify="right")
    figures.add_column("unit")
    for name in METRICS:
        if name in evaluation.figures:
            figures.add_row(name, _number(evaluation.figures[name]), METRICS[name].unit)
    rows = Table(title="by description", box=SIMPLE)
    rows.add_column("description")
    for column in ("true", "pred", "TP", "P", "R", "F1", "IoU", "AP"):
        rows.add_column(column, justify="right", no_wrap=True)
    for row in evaluation.rows:
        name, *values = asdict(row).values()
        rows.add_row(Text(printable(name)), *map(_number, values))
    return figures, rows


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"

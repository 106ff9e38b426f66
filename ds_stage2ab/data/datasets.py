"""Training and validation records of a run, read and checked before anything else is built."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from ds_stage2ab.carriers import Record
from ds_stage2ab.codec.added_tokens import check_descriptions
from ds_stage2ab.codec.text import Codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.config.sections import Config, DataSection
from ds_stage2ab.data.box_space import boxes_of, other_form
from ds_stage2ab.data.images import check_image, unusable_images
from ds_stage2ab.data.records import read_records
from ds_stage2ab.runtime.ranks import World

SKIP = "skip"
"""The value of `data.on_bad_sample` and `data.on_overlong` that goes on without the sample."""


TELL_EVERY_S = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Datasets:
    """Checked records."""

    train: list[Record]
    validation: list[Record]
    # empty when none is configured
    unusable: list[str]
    # what is wrong with training images whose samples will be skipped


def on_stdout(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def read_datasets(config: Config, world: World, tell: Callable[[str], None] = on_stdout) -> Datasets:
    """Read both sets on every rank, and look at every image, each rank its share: that it is there, and its header.

    Args:
        tell: is given a line now and then, on rank 0.

    Raises:
        DataError: a line, a box or an image is not what the data contract says.
    """
    data, skips = config.data, config.data.on_bad_sample == SKIP
    with world.raise_together("reading the records"):
        form = {"image_root": data.image_root, "box_format": data.box_format, "share": (world.rank, world.size)}
        train = read_records(data.train, **form, keep_unusable=skips)
        validation = [] if data.validation is None else read_records(data.validation, **form)
        validation = validation[: config.evaluation.max_samples]
    with world.raise_together("looking at the images"):
        tell = tell if world.rank == 0 else _silent
        mine = now_and_then(train[world.rank :: world.size], len(train), tell)
        unusable = list(unusable_images(mine)) if skips else []
        for record in chain(() if skips else mine, validation[world.rank :: world.size]):
            check_image(record)
    return Datasets(train=train, validation=validation, unusable=list(chain.from_iterable(world.gather(unusable))))


def now_and_then(
    mine: Sequence[Record], total: int, tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic
) -> Iterator[Record]:
    """This rank's share of the records; tells of all every `TELL_EVERY_S` seconds, as the ranks are equally fast."""
    begun = told = clock()
    for done, record in enumerate(mine, 1):
        yield record
        now = clock()
        if now - told >= TELL_EVERY_S:
            tell(f"looking at the images: {total * done // len(mine):,} of {total:,}, {now - begun:.0f} s")
            told = now


def _silent(line: str) -> None:
    """For the ranks that do not speak."""


def assert_answerable(records: Iterable[Record], vocabulary: Vocabulary, codec: Codec) -> None:
    """Refuse a description that can neither be taught nor answered.

    Raises:
        DataError: an answer in the form of the codec, by this tokenizer, cannot hold it.
    """
    described = ((record.where, truth.desc) for record in records for truth in record.objects)
    check_descriptions(described, vocabulary.added_texts, vocabulary.normalise, codec.name)


def data_warnings(section: DataSection, datasets: Datasets) -> list[str]:
    """What looks wrong in the training and in the held-out set."""
    found = []
    for path, records in ((section.train, datasets.train), (section.validation, datasets.validation)):
        warning = other_form(boxes_of(records), section.box_format)
        found += [f"{path}: {warning}"] if warning else []
    if datasets.unusable:
        share = f"{len(datasets.unusable)} of {len(datasets.train)} images cannot be used"
        skipped = "and their samples will be skipped; the first"
        found.append(f"{section.train}: {share}, {skipped}: {min(datasets.unusable)}")
    return found

"""Whatever stands in the files of a checkpoint folder, the answer is a message of ours, from a run and from a plan."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.config.overrides import read_overrides
from ds_stage2ab.data.encode import Encoder
from ds_stage2ab.engine.build import embedding_holds_coordinates, load_checkpoint
from ds_stage2ab.errors import Stage2Error
from ds_stage2ab.preflight.report import preflight_report
from tests.parts import ROOT
from tests.unit.engine.test_build import section

FILES = ("config.json", "preprocessor_config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json")
WRONG = (None, "text", -1, 0.5, [], {}, True)
TRIED_EVERY_TIME = 30
EXAMPLE = ROOT / "tests" / "examples" / "valid" / "minimal.yaml"


def keys_of(values: dict, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        yield (*path, key)
        if isinstance(value, dict) and key not in ("vocab", "added_tokens_decoder"):
            yield from keys_of(value, (*path, key))


def damages(folder: Path) -> list[tuple[str, tuple[str, ...], object]]:
    """(file, key, wrong value) of every key in every file."""
    found = [(name, path) for name in FILES for path in keys_of(json.loads((folder / name).read_text()))]
    return [(name, path, wrong) for name, path in found for wrong in WRONG]


def tried(folder: Path) -> None:
    """What a run does with a folder before its first step, and a plan; each may refuse it."""
    try:
        overrides = read_overrides([f"model.path={folder}"])
        preflight_report(EXAMPLE, overrides, learners=1, rollout_devices=None, records=64)
    except Stage2Error:
        pass
    try:
        loaded = load_checkpoint(section(folder), min_pixels=None, max_pixels=None)
        vocabulary = Vocabulary.from_tokenizer(loaded.tokenizer)
        embedding_holds_coordinates(loaded, vocabulary)
        encoder = Encoder(
            loaded.tokenizer, loaded.image_processor, vocabulary, system_prompt=None, user_prompt="Detect every digit."
        )
        encoder.prompt_length(64, 48)
        encoder.blank([])
    except Stage2Error:
        pass


@pytest.fixture
def damage(quickstart, tmp_path):
    """Damages a copy of the folder in one place, tries it, and mends it."""
    folder = Path(shutil.copytree(quickstart.model, tmp_path / "model"))

    def once(name, path, wrong):
        text = (folder / name).read_text()
        values = json.loads(text)
        section = values
        for key in path[:-1]:
            section = section[key]
        section[path[-1]] = wrong
        (folder / name).write_text(json.dumps(values))
        try:
            tried(folder)
        except Exception as error:
            raise AssertionError(f"{name}: {'.'.join(path)} = {wrong!r}: {type(error).__name__}: {error}") from error
        finally:
            (folder / name).write_text(text)

    return once


def test_a_wrong_value_in_a_file_is_a_message(quickstart, damage):
    every = damages(quickstart.model)
    for case in every[:: len(every) // TRIED_EVERY_TIME]:
        damage(*case)


@pytest.mark.soak
def test_every_wrong_value_in_every_file_is_a_message(quickstart, damage):
    for case in damages(quickstart.model):
        damage(*case)

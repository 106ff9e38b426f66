"""The runbook's table of what ranks on several machines read names every path of a config, and what is compared."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import get_args

from ds_stage2ab.config.sections import Config
from ds_stage2ab.runtime.versions import LIBRARIES
from tests.architecture.sources import ROOT

RUNBOOK = ROOT / "docs" / "training" / "STAGE2_RUNBOOK.md"
HEAD = "| path | on every machine | compared |"
LONG_NAMES = {"deepspeed": "DeepSpeed", "numpy": "NumPy", "pillow": "Pillow"}


def path_keys(section: type, above: str = "") -> Iterator[str]:
    """`data.train`, ...: the keys whose values are paths."""
    for field in fields(section):
        kind = next((member for member in get_args(field.type) if member is not NoneType), field.type)
        if is_dataclass(kind):
            yield from path_keys(kind, f"{above}{field.name}.")
        elif kind is Path:
            yield f"{above}{field.name}"


def table() -> str:
    text = RUNBOOK.read_text(encoding="utf-8")
    return text[text.index(HEAD) :].split("\n\n")[0]


def test_every_path_of_a_config_is_in_the_table():
    keys = list(path_keys(Config))
    assert {"model.path", "data.train", "logging.root"} <= set(keys)
    assert [key for key in keys if f"`{key}`" not in table()] == []


def test_every_library_that_is_compared_is_in_the_table():
    assert [name for name in LIBRARIES if LONG_NAMES.get(name, name) not in table()] == []

"""`--class-names`: the names of class ids, or other names for those that a data set has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ds_stage2ab.errors import ConfigError
from ds_stage2ab.formats.options import MAPPINGS

FIX = "write one name per line, or a YAML file with `names`: a list, or a mapping from id (or name) to name"


@dataclass(frozen=True, slots=True)
class ClassNames:
    """Key of a class as text -> its name."""

    names: dict[str, str]

    def of(self, *keys: object) -> str | None:
        """The name of a class, by the first of its keys that is known; None: it has none."""
        return next((self.names[str(key)] for key in keys if str(key) in self.names), None)


def read_class_names(file: Path) -> ClassNames:
    """Names by id, counted from 0 in a list and in a text file.

    Raises:
        ConfigError: the file cannot be read, or has no names.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(file), fix=FIX) from None
    if file.suffix.lower() in (*MAPPINGS, ".json"):
        return ClassNames(_of_mapping(file, yaml_values(file, text)))
    return ClassNames({str(place): name for place, name in enumerate(text.split("\n")) if name.strip()})


def yaml_values(file: Path, text: str) -> Any:
    """The plain values of a YAML or JSON text.

    Raises:
        ConfigError: it is none.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, TypeError, RecursionError) as error:  # its own, and those of dates, numbers, keys
        raise ConfigError(f"is no YAML: {error}", where=str(file), fix=FIX) from None


def _of_mapping(file: Path, values: Any) -> dict[str, str]:
    found = values["names"] if isinstance(values, dict) and "names" in values else values
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(found, list):
        pairs = enumerate(found)
    elif isinstance(found, dict):
        pairs = found.items()
    names = {str(key): name for key, name in pairs if isinstance(name, str) and name.strip()}
    if not names:
        raise ConfigError("has no names of classes", where=str(file), fix=FIX)
    return names

"""The file that names the rollout servers of a run that goes on: `vllm.server.servers_file`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jsonschema.exceptions import best_match

from ds_stage2ab.config.document import read_document
from ds_stage2ab.config.report import as_error
from ds_stage2ab.config.rules import servers_differ
from ds_stage2ab.config.schema import Validator, config_schema, schema_at, with_defaults
from ds_stage2ab.config.sections import ServerSection
from ds_stage2ab.config.servers import SERVERS
from ds_stage2ab.errors import ConfigError

KEY = "servers"
MOST_SAID = 120  # characters


Named = Callable[[], tuple[ServerSection, ...] | None]
"""Reads the servers that are named now; None: the config's own."""


def named_in(path: Path | None) -> Named:
    """A function that reads the servers that a file names now; it returns None while there is no such file."""

    def named() -> tuple[ServerSection, ...] | None:
        return None if path is None or not path.exists() else read_servers(path)

    return named


def read_servers(path: Path) -> tuple[ServerSection, ...]:
    """The servers of a YAML file of one key, `servers`, whose entries are those of the config.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    document = read_document(path)
    if document.problems:
        raise as_error(document.problems, str(path), document.sources, subject="the file of servers")
    entries = document.values.get(KEY)
    if document.values.keys() != {KEY} or not entries:
        raise ConfigError(
            f"the file of servers must have one key, {KEY}, with an entry for each",
            where=str(path),
            fix=f"write `{KEY}:`, and below it `- base_url: http://127.0.0.1:8000`",
        )
    schema = schema_at(config_schema(), tuple(SERVERS.split(".")))
    problem = best_match(Validator(schema).iter_errors(entries))
    if problem is not None:
        said = f"{KEY}{problem.json_path.removeprefix('$')}: {problem.message[:MOST_SAID]}"
        raise ConfigError(said, where=str(path), fix=f"an entry is written as in {SERVERS}")
    filled = [with_defaults(entry, schema["items"]) for entry in entries]
    servers_differ(filled)
    return tuple(ServerSection(**entry) for entry in filled)

"""The reference of all keys, made from the schema files: `python -m ds_stage2ab.config.reference docs/config.md`.

`make docs` writes it; a test compares the page in the repository with it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from ds_stage2ab.config.problems import KeyPath, dotted
from ds_stage2ab.config.removed import VALUE, removed_keys
from ds_stage2ab.config.rules import RULES, Rule
from ds_stage2ab.config.schema import accepted, config_schema
from ds_stage2ab.config.topology_rules import topology_rules

_INTRODUCTION = """\
# Config reference

Every key of a config, from the schema files in `schemas/` (`make docs` writes this page). Unknown keys are refused
everywhere. A key without a default is required, once a file is merged with what it `extends`.

```
python -m ds_stage2ab.validate my.yaml --show      # every value, and the line that it comes from
ds-stage2ab plan my.yaml                           # what a run would do
deepspeed ds_stage2ab/train.py --config my.yaml --set training.seed=43
```

`extends` names a file or a list of files to start from, relative to the file that names them; absolute paths are fine.
They merge from left to right, the file itself wins over them, and `--set KEY=VALUE` over the file. Mappings merge key
by key, lists and single values replace."""

_RULES = """\
## Rules between keys

Checked as soon as the keys that a rule reads are right by themselves. The learner ranks are those of `--learners` or of
the launcher, the rollout devices those of `--rollout-gpus`."""

_REMOVED = """\
## Removed keys

Configs of earlier systems have them. Each is refused with what to do instead, with the value where the old one gives
it."""


def reference() -> str:
    """The whole page as Markdown."""
    parts = [_INTRODUCTION]
    for name, section in config_schema()["properties"].items():
        if section.get("type") == "object":
            parts += _section((name,), section, level=2)
    return "\n\n".join([*parts, _RULES, _rules(), _REMOVED, _removed()]) + "\n"


def _section(path: KeyPath, section: dict, level: int) -> Iterator[str]:
    """Heading, meaning and table of a section, then those of what it holds."""
    keys = section["properties"].items()
    yield f"{'#' * level} `{dotted(path)}`"
    yield section["description"]
    rows = [_row(key, schema) for key, schema in keys if schema.get("type") != "object"]
    if rows:
        yield "\n".join(["| key | takes | default | meaning |", "| --- | --- | --- | --- |", *rows])
    for key, schema in keys:
        if schema.get("type") == "object":
            yield from _section((*path, key), schema, level=3)
        elif "items" in schema and schema["items"]["type"] == "object":
            yield from _section((*path, f"{key}[]"), schema["items"], level=3)


def _row(key: str, schema: dict) -> str:
    default = f"`{json.dumps(schema['default'])}`" if "default" in schema else "required"
    return f"| `{key}` | {_takes(schema)} | {default} | {_cell(schema['description'])} |"


def _takes(schema: dict) -> str:
    if "items" not in schema:
        return accepted(schema)
    entries = schema["items"]
    kind = "mappings, see below" if entries["type"] == "object" else accepted(entries)
    return f"a list; each entry: {kind}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _rules() -> str:
    lines = ["| rule | keys | says |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(_rule(rule) for rule in (*topology_rules(None, None), *RULES))])


def _rule(rule: Rule) -> str:
    name = rule.check.__name__.replace("_", " ")
    keys = ", ".join(f"`{key}`" for key in rule.keys)
    return f"| {name} | {keys} | {rule.check.__doc__.splitlines()[0]} |"


def _removed() -> str:
    lines = ["| removed | why | instead |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(_removed_row(row) for row in removed_keys())])


def _removed_row(row: dict) -> str:
    key = f"{row['key']}: {row['value']}" if "value" in row else row["key"]
    fix = row["fix"].replace(VALUE, "(the share of B in it)" if "is_pattern" in row else "(its value)")
    return f"| `{key}` | {_cell(row['why'])} | {_cell(fix)} |"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")

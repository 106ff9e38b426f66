"""docs/config.md is what the schema files say, and says all of it."""

import subprocess
import sys

from ds_stage2ab.config.reference import reference
from ds_stage2ab.config.removed import removed_keys
from ds_stage2ab.config.rules import RULES
from ds_stage2ab.config.schema import config_schema, leaves
from tests.parts import ROOT

PAGE = ROOT / "docs" / "config.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == reference(), "docs/config.md is out of date: run `make docs`"


def test_every_key_has_a_row_below_the_heading_of_its_section():
    text = reference()
    for path, schema in leaves(config_schema()):
        section = text.split(f"# `{'.'.join(path[:-1])}`\n")[1].split("\n#")[0]
        row = next(line for line in section.splitlines() if line.startswith(f"| `{path[-1]}` |"))
        assert schema["description"].replace("|", "\\|") in row
        assert ("required" in row.split(" | ")[2]) == ("default" not in schema)


def test_ranges_choices_and_entries_of_lists_are_told():
    text = reference()
    assert "| `seed` | a whole number, at least 0 and at most 4294967295 | `42` |" in text
    assert "`training.effective_batch_size`" in text
    assert "### `custom.extra.rollout_matching.vllm.server.servers[]`" in text
    assert "| `base_url` | text | required |" in text


def test_every_rule_and_every_removed_key_has_a_row():
    text = reference()
    assert all(f"| {rule.check.__name__.replace('_', ' ')} |" in text for rule in RULES)
    assert all(f"| `{row['key']}" in text for row in removed_keys())


def test_the_command_writes_the_page(tmp_path):
    command = [sys.executable, "-m", "ds_stage2ab.config.reference", str(tmp_path / "config.md")]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    assert (tmp_path / "config.md").read_text(encoding="utf-8") == reference()

"""The files as an editor sees them: each alone, against the schema that its first line names.

An editor knows nothing of `extends`: it reads one file, follows the references between the schema files, and marks what
differs. What it marks must be wrong, and a child that leaves out what its base gives must stay unmarked.
"""

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
STANDALONE = ROOT / "configs" / "own_data.yaml"
CHILD = ROOT / "configs" / "stage2_ab" / "prod" / "ab_mixed.yaml"
MODELINE = "# yaml-language-server: $schema="


def resource(uri: str) -> Resource:
    """A schema file by its address, as an editor opens it."""
    text = Path(uri.removeprefix("file://")).read_text(encoding="utf-8")
    return Resource.from_contents(json.loads(text), default_specification=DRAFT202012)


def marks(text: str, folder: Path) -> list[str]:
    """`key.path: keyword` of everything that an editor marks in a file of that folder."""
    named = text.splitlines()[0].removeprefix(MODELINE)
    uri = f"file://{(folder / named).resolve()}"
    validator = Draft202012Validator({"$ref": uri}, registry=Registry(retrieve=resource))
    yaml = YAML(typ="safe", pure=True)
    found = validator.iter_errors(yaml.load(text))
    return sorted(f"{'.'.join(map(str, error.absolute_path))}: {error.validator}" for error in found)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_shipped_file_is_marked(path):
    assert marks(path.read_text(encoding="utf-8"), path.parent) == []


@pytest.mark.parametrize(
    ("path", "old", "new", "mark"),
    [
        (CHILD, "b_ratio:", "b_rati:", "stage2_ab.schedule: additionalProperties"),
        (CHILD, "stage2_ab:", "stage2ab:", ": additionalProperties"),
        (CHILD, "rollout_backend: vllm", "rollout_backend: vlm", "custom.extra.rollout_matching.rollout_backend: enum"),
        (STANDALONE, "effective_batch_size: 64", "effective_batch_size: '64'", "training.effective_batch_size: type"),
        (STANDALONE, "effective_batch_size: 64", "effective_batch_size: 0", "training.effective_batch_size: minimum"),
        (STANDALONE, "  effective_batch_size: 64", "  seed: 1", "training: required"),
        (STANDALONE, "b_ratio: 0 ", "{} ", "stage2_ab.schedule: required"),
    ],
)
def test_a_mistake_is_marked(path, old, new, mark):
    text = path.read_text(encoding="utf-8")
    assert old in text
    assert marks(text.replace(old, new, 1), path.parent) == [mark]


def test_a_child_may_leave_out_what_its_base_gives_and_a_file_alone_may_not():
    first, *rest = CHILD.read_text(encoding="utf-8").splitlines(keepends=True)
    alone = first + "".join(line for line in rest if not line.startswith("extends:"))
    assert marks(alone, CHILD.parent) == [": required", ": required", ": required"]

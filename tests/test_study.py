"""`make study` on scenes and steps that are few: the whole of it once, and nothing a second time."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.sources import ROOT

pytestmark = pytest.mark.soak
SMALLER = (
    ('"--validation-scenes", "4000"', '"--train-scenes", "40", "--validation-scenes", "8"'),
    ('"--validation-scenes", "2000"', '"--validation-scenes", "4"'),
    ("steps = 1000", "steps = 2"),
    ("steps = 200", "steps = 2"),
    ("steps = 400", "steps = 2"),
    ("rounds = 8", "rounds = 1"),
    ("rates = [1.0, 0.3]", "rates = [0.3]"),
)


MIXED, SCORED = "mix-50.rate-0.3.seed-42", "a-scored.rate-0.3.seed-42"


def study(tree: Path, *more: str) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "ds_stage2ab.tools.study", "--rows", "mix-50,a-scored", "--seeds", "1", *more]
    variables = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, cwd=tree, env=variables, capture_output=True, text=True, timeout=900, check=False)


def results(pages: Path) -> dict[str, dict]:
    lines = (pages / "digits.jsonl").read_text().splitlines()
    return {entry["name"]: entry for entry in map(json.loads, lines)}


def forget(pages: Path, name: str) -> None:
    kept = [entry for entry in results(pages).values() if entry["name"] != name]
    (pages / "digits.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in kept))


def hf_of(run: Path) -> Path:
    return run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip() / "hf"


def contents(tree: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(tree.rglob("*.json*")) if path.is_file()}


def test_it_trains_measures_and_writes_its_page_and_nothing_twice(tmp_path):
    for name in ("ds_stage2ab", "assets", "schemas"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    rows, config = tmp_path / "configs" / "study" / "rows.toml", tmp_path / "configs" / "study" / "digits.yaml"
    text = rows.read_text()
    for old, new in SMALLER:
        assert old in text
        text = text.replace(old, new)
    rows.write_text(text)
    config.write_text(config.read_text() + "training:\n  warmup_steps: 1\n")

    done = study(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    pages, runs = tmp_path / "docs" / "study", tmp_path / "runs" / "study" / "digits"
    made = results(pages)
    trained = {"plateau-1", "at-scored", f"steps-2/{MIXED}", f"steps-2/{SCORED}"}
    assert {*made} in (trained | {"start"}, trained | {"start", "at-plateau"})  # as two steps gain enough or do not
    assert {"eval/ap_by_score", "eval/f1"} <= set(made[f"steps-2/{SCORED}"]["figures"]["report"])
    (page,) = pages.glob("digits-*.md")
    assert "| `mix-50` A and B" in page.read_text()

    # A run that was killed between its last step and its result is measured from what it left; one whose checkpoint is
    # gone is trained again where something starts from it; all else stays.
    before, weights = contents(runs), (hf_of(runs / "at-scored") / "model.safetensors").read_bytes()
    forget(pages, f"steps-2/{MIXED}")
    shutil.rmtree(runs / "at-scored")
    again = study(tmp_path, "--open-sealed")
    assert again.returncode == 0, again.stdout + again.stderr
    after = contents(runs)
    changed = {path for path, content in before.items() if after[path] != content}
    assert not any(path.endswith("metrics.jsonl") and "at-scored" not in path for path in changed)
    assert (hf_of(runs / "at-scored") / "model.safetensors").read_bytes() == weights
    assert all("sealed" in made["figures"] for name, made in results(pages).items() if not name.startswith("plateau"))
    assert "kept for the end" in page.read_text()

    # A fault of a run is told with its folder, and leaves no result.
    forget(pages, f"steps-2/{MIXED}")
    config.write_text(config.read_text() + "nothing: 1\n")
    broken = study(tmp_path)
    assert broken.returncode == 2, broken.stdout + broken.stderr

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
    ('"--validation-scenes", "600"', '"--train-scenes", "40", "--validation-scenes", "8"'),
    ('"--validation-scenes", "300"', '"--validation-scenes", "4"'),
    ("steps = 1000", "steps = 2"),
    ("steps = 200", "steps = 2"),
    ("steps = 400", "steps = 2"),
    ("rounds = 8", "rounds = 1"),
    ("rates = [1.0, 0.3]", "rates = [0.3]"),
)


def study(tree: Path, *more: str) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "ds_stage2ab.tools.study", "--rows", "mix-50,a-scored", "--seeds", "1", *more]
    variables = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, cwd=tree, env=variables, capture_output=True, text=True, timeout=900, check=False)


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
    runs = tmp_path / "runs" / "study" / "digits"
    made = {str(path.parent.relative_to(runs)) for path in runs.rglob("result.json")}
    trained = {"plateau-1", "at-scored", "steps-2/mix-50.rate-0.3.seed-42", "steps-2/a-scored.rate-0.3.seed-42"}
    assert made == {"start", "at-plateau", *trained}
    scored = json.loads((runs / "steps-2" / "a-scored.rate-0.3.seed-42" / "result.json").read_text())
    assert {"eval/ap_by_score", "eval/f1"} <= set(scored["figures"]["report"])
    (page,) = (tmp_path / "docs" / "study").glob("*.md")
    assert "| `mix-50` A and B" in page.read_text()

    # A run that was killed between its last step and its result is measured from what it left; all else stays.
    before = contents(runs)
    (runs / "steps-2" / "mix-50.rate-0.3.seed-42" / "result.json").unlink()
    again = study(tmp_path, "--open-sealed")
    assert again.returncode == 0, again.stdout + again.stderr
    changed = {path for path, content in contents(runs).items() if content != before[path]}
    assert not any(path.endswith("metrics.jsonl") for path in changed)
    assert {path.split("/")[-2] for path in changed if path.endswith("result.json")} >= {"start", "at-scored"}
    assert "kept for the end" in page.read_text()

    # A fault of a run is told with its folder, and leaves no result.
    (runs / "steps-2" / "mix-50.rate-0.3.seed-42" / "result.json").unlink()
    config.write_text(config.read_text() + "nothing: 1\n")
    broken = study(tmp_path)
    assert broken.returncode == 2, broken.stdout + broken.stderr

"""Every shipped stage-2 config trains: 2 steps on the quickstart model and data, its own values otherwise.

Replaced by `--set`: paths, the backend, lengths and sizes.
"""

import json
from pathlib import Path

import pytest

from ds_stage2ab.config.load import check_config, load_config
from ds_stage2ab.metrics.journal import read_history
from tests import ranks
from tests.parts import ROOT, Quickstart

TREE = ROOT / "configs" / "stage2_ab"
TRIED_EVERY_TIME = ("prod/ab_mixed.yaml", "smoke/b_only.yaml")
OTHERS = sorted(
    name for name in (str(path.relative_to(TREE)) for path in TREE.rglob("*.yaml")) if name not in TRIED_EVERY_TIME
)
BATCH = 4


def replaced(parts: Quickstart, runs: Path) -> list[str]:
    sizes = {
        "model.path": parts.model,
        "data.train": parts.data / "train.jsonl",
        "data.validation": parts.data / "validation.jsonl",
        "logging.root": runs,
        "custom.extra.rollout_matching.rollout_backend": "hf",
        "custom.extra.rollout_matching.max_new_tokens": 48,
        "training.global_max_length": 512,
        "training.effective_batch_size": BATCH,
        "training.max_steps": 2,
        "evaluation.max_samples": 2,
    }
    return [word for key, value in sizes.items() for word in ("--set", f"{key}={value}")]


def trains_two_steps(name: str, parts: Quickstart, runs: Path) -> None:
    done = ranks.train(TREE / name, *replaced(parts, runs), ranks=2)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder,) = runs.iterdir()
    assert json.loads((folder / "checkpoints" / "step-000002" / "state.json").read_text())["finished_steps"] == 2
    loaded = load_config(TREE / name)
    # Not every step has a line: production configs log every tenth, and the first of each channel.
    steps = read_history(folder / "metrics.jsonl").steps
    expected = {0: "A", 1: "B"}.get(loaded.config.stage2_ab.schedule.b_ratio, "AB")
    assert "".join(dict.fromkeys(record.channel for record in steps)) == expected
    assert all(record.applied and record.metrics["train/samples"] == BATCH for record in steps)
    again = check_config(folder / "config.json")
    assert again.problems == ()
    assert again.resolved == load_config(folder / "config.json").resolved
    assert again.resolved["tuner"] == loaded.resolved["tuner"]


@pytest.mark.parametrize("name", TRIED_EVERY_TIME)
def test_a_shipped_config_trains(name, shipped, tmp_path):
    trains_two_steps(name, shipped, tmp_path / "runs")


@pytest.mark.soak
@pytest.mark.parametrize("name", OTHERS)
def test_every_other_shipped_config_trains(name, shipped, tmp_path):
    trains_two_steps(name, shipped, tmp_path / "runs")

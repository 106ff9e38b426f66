"""How long a run takes from its command line to its first step: from a checkpoint, beside a fresh start."""

import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from ds_stage2ab.engine.resume import choose
from ds_stage2ab.tools.add_coord_tokens import add_coord_tokens
from ds_stage2ab.tools.tiny_model import build_tiny
from tests.bench.checkpoint_pause import SIZE
from tests.parts import ROOT, config_values, merged, write_config

REPEATS = 3
LONGEST_S = 300
STEPS = {"training.optimizer": "adamw", "training.max_steps": 1}
NOISE = 1.5
SLACK_S = 1.0


@pytest.fixture(scope="module")
def large(quickstart, tmp_path_factory):
    """(parts with a model of more than 100 million parameters, how many those are)"""
    folder = tmp_path_factory.mktemp("large")
    number = build_tiny(folder / "plain", seed=0, size=SIZE)
    add_coord_tokens(folder / "plain", folder / "model")
    return replace(quickstart, plain=folder / "plain", model=folder / "model"), number


@pytest.mark.bench
def test_going_on_takes_a_fresh_start_and_two_readings_of_the_checkpoint(large, tmp_path, capsys):
    """One for the digests, one for the tensors."""
    parts, parameters = large

    def started(name, script, *words):
        """Seconds to the loop."""
        config = write_config(tmp_path / "c.yaml", merged(config_values(parts, tmp_path / "runs", name), STEPS))
        environment = {**os.environ, "MOMENT": str(tmp_path / "moment"), "PYTHONPATH": str(ROOT)}
        begun = time.monotonic()
        subprocess.run(
            [sys.executable, script, "--config", str(config), *words],
            cwd=ROOT, env=environment, check=True, capture_output=True, timeout=LONGEST_S,
        )  # fmt: skip
        return float((tmp_path / "moment").read_text()) - begun if script.endswith("start_time.py") else None

    started("saved", "ds_stage2ab/train.py")
    checkpoints = tmp_path / "runs" / "saved" / "checkpoints"
    fresh, resumed, digests = [], [], []
    for turn in range(REPEATS):
        fresh.append(started(f"fresh-{turn}", "tests/bench/start_time.py"))
        resumed.append(started("saved", "tests/bench/start_time.py", "--resume", "latest"))
        begun = time.monotonic()
        choose("latest", checkpoints)
        digests.append(time.monotonic() - begun)
    fresh, resumed, digests = map(statistics.median, (fresh, resumed, digests))
    with capsys.disabled():
        print(f"\n{parameters / 1e6:.0f} million parameters, AdamW, one rank, seconds (medians of {REPEATS}): to the")
        print(f"first step {fresh:.1f} fresh, {resumed:.1f} resumed; every file read for its digest {digests:.1f}")
    assert parameters >= 100e6
    assert resumed < NOISE * (fresh + 2 * digests) + SLACK_S

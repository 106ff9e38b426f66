"""How long a checkpoint holds up the loop, and how long a run takes to go on from one."""

import json
import subprocess
import sys

import pytest

from tests.parts import ROOT, config_values, merged, write_config

SLACK_S = 0.5
NOISE = 1.25


@pytest.mark.bench
def test_a_save_holds_up_the_loop_for_an_export_and_a_copy(quickstart, tmp_path, capsys):
    values = merged(config_values(quickstart, tmp_path, "pause"), {"training.optimizer": "adamw"})
    config, out = write_config(tmp_path / "c.yaml", values), tmp_path / "figures.json"
    words = ("tests.bench.checkpoint_pause", str(config), str(quickstart.model), str(tmp_path), str(out))
    subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=True, capture_output=True, timeout=900)
    seen = json.loads(out.read_text())
    with capsys.disabled():
        print(f"\n{seen['parameters'] / 1e6:.0f} million parameters, AdamW, fp32, seconds (medians): ", end="")
        parts = ("save", "complete", "export", "copy", "digests", "load")
        print(", ".join(f"{name} {seen[name]:.2f}" for name in parts))
        print(f"a save takes {seen['save'] / (seen['export'] + seen['copy']):.2f} of an export and a copy")
    assert seen["parameters"] >= 100e6
    assert seen["save"] < NOISE * (seen["export"] + seen["copy"]) + SLACK_S

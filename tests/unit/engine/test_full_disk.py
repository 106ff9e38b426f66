"""A disk that is full at any file of a checkpoint costs that checkpoint alone, and none before it."""

import json
import subprocess
import sys

import pytest

from ds_stage2ab.engine.resume import ADAPTER
from tests.parts import ROOT, config_values, write_config

LONGEST_S = 200


@pytest.mark.soak
def test_each_file_in_turn(quickstart, tmp_path):
    config = write_config(tmp_path / "c.yaml", config_values(quickstart, tmp_path, "full"))
    disk = tmp_path / "disk"
    disk.mkdir()
    script = [sys.executable, "-m", "tests.unit.engine.full_disk", str(config), str(quickstart.model), str(disk)]
    command = ["unshare", "--map-root-user", "--mount", *script]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=LONGEST_S)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    room, *files, latest, again, read_only = told
    assert room["why"].startswith("a checkpoint takes ") and " GiB are free" in room["why"] and room["there"] == []
    named = [one["file"].removeprefix("step-000001/") for one in files]
    assert {"state.json", "manifest.json", "random.safetensors", "hf/config.json"} <= {*named}
    assert any(name.startswith("hf/model") for name in named) and any(name.startswith("training/") for name in named)
    assert not any(name.startswith(ADAPTER) for name in named)
    for one in files:
        assert one["why"].startswith("a checkpoint cannot be written: "), one
        assert one["goes on"] == 1 and one["there"] == ["latest", "step-000001"], one
    assert latest["why"] and latest["goes on"] == 2, "it is complete, and found without `latest`"
    assert not again["why"] and again["there"] == ["latest", "step-000001", "step-000002"]
    assert "Read-only file system" in read_only["why"]
    assert (read_only["goes on"], read_only["there"]) == (2, again["there"])

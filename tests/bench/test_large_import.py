"""A COCO file of 200,000 annotations with polygons: speed and memory, beside `pycocotools.COCO(...)` alone.

Reading the file is all that pycocotools does here; an import also opens 27,000 images and writes the JSONL.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.sources import ROOT
from tests.bench.large_coco import NUM_ANNOTATIONS

MOST_MIB = 100
MOST_TIMES = 6
"""CPU seconds beside pycocotools': three passes over the file and the headers of all images; measured 2.5 to 3."""


def run(folder: Path, how: str) -> str:
    command = [sys.executable, "-m", "tests.bench.large_coco", str(folder), how]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=600)
    return done.stdout.strip().rsplit("\n", 1)[-1]


@pytest.mark.bench
def test_an_import_takes_little_memory(tmp_path, capsys):
    run(tmp_path, "write")
    peer, ours = (json.loads(run(tmp_path, how)) for how in ("pycocotools", "import"))
    with capsys.disabled():
        print()
        for name, took in (("pycocotools.COCO(...)", peer), ("import coco", ours)):
            speed = NUM_ANNOTATIONS / took["seconds"]
            print(f"{name}: {speed:,.0f} objects/s, {took['cpu_seconds']:.1f} CPU s, {took['mib']:.0f} MiB")
    assert ours["mib"] < MOST_MIB
    assert ours["mib"] < peer["mib"] / 5
    assert ours["cpu_seconds"] < MOST_TIMES * peer["cpu_seconds"]

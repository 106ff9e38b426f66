"""The forward of a long pack, without the mask of its length squared and with it, one after the other."""

import json
import subprocess
import sys

import pytest

from tests.parts import ROOT


def forward(mode: str, parts) -> dict:
    command = [sys.executable, "-m", "tests.bench.long_pack", mode, str(parts.model), str(parts.data)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.bench
def test_a_long_pack_builds_no_mask(shipped, capsys):
    now, before = forward("now", shipped), forward("before", shipped)
    with capsys.disabled():
        for name, seen in (("without the mask", now), ("with it", before)):
            print(f"\n{seen['tokens']} tokens, {name}: {seen['seconds']:.2f} s, peak {seen['bytes'] / 2**20:.0f} MiB")
    assert now["seconds"] < before["seconds"]
    assert before["bytes"] - now["bytes"] > now["tokens"] ** 2 / 2

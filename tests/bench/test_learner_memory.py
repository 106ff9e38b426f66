"""Logits exist where something is supervised, and nowhere else: what that saves, beside all positions, in one run."""

import subprocess
import sys

import pytest

from tests.bench.learner_memory import SUPERVISED, TOKENS, VOCABULARY
from tests.parts import ROOT

LEAST = 3.0


def peak(mode: str, parts) -> int:
    command = [sys.executable, "-m", "tests.bench.learner_memory", mode, str(parts.model), str(parts.data)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.splitlines()[-1])


@pytest.mark.bench
def test_a_quarter_supervised_takes_a_third_of_the_memory(shipped, capsys):
    ours, all_positions = (peak(mode, shipped) for mode in ("objective", "all_positions"))
    with capsys.disabled():
        print(
            f"\n{TOKENS} tokens, {VOCABULARY} ids, {SUPERVISED} supervised: peak above the loaded model"
            f" {ours / 2**30:.2f} GiB, with logits of all positions {all_positions / 2**30:.2f} GiB,"
            f" ratio {all_positions / ours:.2f}"
        )
    assert all_positions >= LEAST * ours

"""How long a user waits before anything has begun."""

import subprocess
import sys
import time

import pytest

from tests.architecture.sources import ROOT

CONFIG = "configs/quickstart/ab_mixed.yaml"
REPEATS = 5  # the best of several: another process on the machine makes one slower, none makes one faster


def seconds_of(*command: str) -> float:
    """Wall seconds of a whole process, the best of `REPEATS`."""
    seen = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True, timeout=60)
        seen.append(time.perf_counter() - start)
    return min(seen)


@pytest.mark.bench
def test_validate_answers_at_once():
    assert seconds_of("-m", "ds_stage2ab.validate", CONFIG) < 0.35


@pytest.mark.bench
def test_help_answers_at_once():
    assert seconds_of("-m", "ds_stage2ab", "--help") < 0.35

"""What cross entropy takes beside its logits: their gradient, and the fp32 copies of one block of rows."""

import subprocess
import sys

import pytest

from tests.bench.cross_entropy_memory import LOGITS, ROWS, VOCABULARY
from tests.parts import ROOT

MOST = 2.0  # of the logits, where the gradient alone is 1
LEAST_SAVED = 2.5


def measured(mode: str) -> tuple[float, int]:
    """(seconds, bytes)."""
    command = [sys.executable, "-m", "tests.bench.cross_entropy_memory", mode]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    seconds, peak = done.stdout.split()
    return float(seconds), int(peak)


@pytest.mark.bench
def test_it_takes_its_gradient_and_a_block(capsys):
    (ours_s, ours), (at_once_s, at_once) = measured("in_blocks"), measured("at_once")
    with capsys.disabled():
        print(
            f"\n{ROWS} rows of {VOCABULARY} ids in bf16, {LOGITS / 2**30:.2f} GiB: cross entropy and its gradient take"
            f" {ours / 2**30:.2f} GiB and {ours_s:.1f} s, of all rows at once {at_once / 2**30:.2f} GiB and"
            f" {at_once_s:.1f} s, ratio {at_once / ours:.2f}"
        )
    assert ours <= MOST * LOGITS
    assert at_once >= LEAST_SAVED * ours

"""Every property of the unit tests again, on examples of its own choice."""

import subprocess
import sys

import pytest

from tests.parts import ROOT


@pytest.mark.soak
def test_properties_hold_on_new_examples():
    selection = ["-m", "hypothesis and not soak and not bench", "--hypothesis-profile=random", "tests/unit"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *selection]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:]

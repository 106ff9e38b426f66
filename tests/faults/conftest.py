"""What tests of resumed runs share."""

import pytest

from ds_stage2ab.errors import EXIT_OK
from tests.faults.resumed_runs import Runs


@pytest.fixture(scope="module")
def runs(shipped, tmp_path_factory):
    """Among them `whole`, which nothing has stopped."""
    runs = Runs(shipped, tmp_path_factory.mktemp("resume"))
    done = runs("whole")
    assert done.returncode == EXIT_OK, done.stdout[-3000:] + done.stderr[-3000:]
    return runs

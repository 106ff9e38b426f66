"""What every test shares: the tiers, and the parts that are slow to build."""

from dataclasses import replace

import pytest

from tests.parts import ROOT, Quickstart, build_quickstart
from tests.tiers import pytest_collection_modifyitems, pytest_runtest_makereport  # noqa: F401


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    """A tiny model with coordinate tokens and digit scenes; tests read them and never write there."""
    return build_quickstart(tmp_path_factory.mktemp("quickstart"))


@pytest.fixture(scope="session")
def shipped(quickstart: Quickstart) -> Quickstart:
    """The shipped stage-1 checkpoint, whose answers are good enough to match, with the same scenes."""
    return replace(quickstart, model=ROOT / "assets" / "quickstart" / "stage1")

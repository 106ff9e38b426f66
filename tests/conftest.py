"""What every test shares: the tiers, and the parts that are slow to build."""

from dataclasses import replace

import pytest
from hypothesis import settings

from tests.parts import ROOT, Quickstart, build_quickstart
from tests.tiers import pytest_collection_modifyitems, pytest_runtest_makereport  # noqa: F401

# Properties: `make test` tries the same examples every time, `make soak` new ones. A busy machine makes one example
# slow, and no property is about time.
settings.register_profile("fixed", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile("fixed")


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    """A tiny model with coordinate tokens and digit scenes; tests read them and never write there."""
    return build_quickstart(tmp_path_factory.mktemp("quickstart"))


@pytest.fixture(scope="session")
def shipped(quickstart: Quickstart) -> Quickstart:
    """The shipped stage-1 checkpoint, whose answers are good enough to match, with the same scenes."""
    return replace(quickstart, model=ROOT / "assets" / "quickstart" / "stage1")

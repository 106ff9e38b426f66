"""What every test shares: the tiers, and the parts that are slow to build."""

import pytest

from tests.parts import Quickstart, build_quickstart
from tests.tiers import pytest_collection_modifyitems, pytest_runtest_makereport  # noqa: F401


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    """A tiny model with coordinate tokens and digit scenes; tests read them and never write there."""
    return build_quickstart(tmp_path_factory.mktemp("quickstart"))

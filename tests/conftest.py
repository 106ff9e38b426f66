"""What every test shares: tiers, workers and costs, and the parts that are slow to build."""

import os
from collections.abc import Iterator
from dataclasses import replace

# Before torch is imported: three workers, each with as many threads as cores, wait for each other most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from tests import costs, tiers, workers
from tests.parts import ROOT, Quickstart, build_quickstart
from tests.vllm_process import Server, running

# Properties: `make test` tries the same few examples every time, `make soak` a thousand new ones. A busy machine makes
# one example slow, and no property is about time.
settings.register_profile("fixed", deadline=None, derandomize=True, max_examples=50)
settings.register_profile("random", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile("fixed")


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Here, since some of them have options."""
    for plugin in (tiers, workers, costs):
        pluginmanager.register(plugin)


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    """A tiny model with coordinate tokens and digit scenes; tests read them and never write there."""
    return build_quickstart(tmp_path_factory.mktemp("quickstart"))


@pytest.fixture(scope="session")
def shipped(quickstart: Quickstart) -> Quickstart:
    """The shipped stage-1 checkpoint, whose answers are good enough to match, with the same scenes."""
    return replace(quickstart, model=ROOT / "assets" / "quickstart" / "stage1")


@pytest.fixture(scope="session")
def server(shipped: Quickstart, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The one real vLLM server, which serves `shipped`; its weights are those that the test before has sent."""
    with running(shipped, tmp_path_factory.mktemp("server")) as started:
        yield started

"""Which tests share a worker, and in what order: hooks for pytest-xdist. `tests/conftest.py` registers them.

Two workers, since most tests that start processes wait for them, and most others compute in one thread. The tests of
one file share a worker, as they share its fixtures; the files that use the one vLLM server share one, and begin first.
Then come the dearest files, by `tests/costs.json`, so that none is left alone at the end.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

RECORDED = Path(__file__).with_name("costs.json")
CHEAP_CPU_S = 5
SERVER = "the vLLM server"
SERVER_FILES = (
    "tests/contract/test_backends.py",
    "tests/contract/test_other_weights.py",
    "tests/faults/test_lost_learners.py",
    "tests/faults/test_lost_servers.py",
    "tests/test_stage2_ab_vllm_server_mode_smoke.py",
    "tests/test_vllm_guard.py",
    "tests/test_vllm_soak.py",
)


def recorded_costs() -> dict[str, dict[str, float]]:
    """File -> CPU seconds and seconds, as `make costs` has measured them."""
    return json.loads(RECORDED.read_text(encoding="utf-8"))


def file_of(nodeid: str) -> str:
    return nodeid.split("::")[0]


def group_of(nodeid: str) -> str:
    file = file_of(nodeid)
    return SERVER if file in SERVER_FILES else file


class ByGroup(LoadScopeScheduling):
    """Gives a worker whole groups."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    return ByGroup(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cheap", action="store_true", help=f"leave out files of more than {CHEAP_CPU_S} CPU seconds")
    parser.addoption("--shard", metavar="I/N", help="the I-th of N parts of the tests")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """After the tiers have been chosen."""
    costs = recorded_costs()
    strangers = {file_of(item.nodeid) for item in items if _uses_server(item)} - {*SERVER_FILES}
    assert not strangers, f"they use the vLLM server; add them to SERVER_FILES: {strangers}"
    kept = items
    if config.getoption("--cheap"):
        kept = [item for item in items if costs.get(file_of(item.nodeid), {}).get("cpu_s", 0.0) <= CHEAP_CPU_S]
    if config.getoption("--shard"):
        part, parts = map(int, config.getoption("--shard").split("/"))
        kept = kept[part - 1 :: parts]
    config.hook.pytest_deselected(items=_without(items, kept))
    items[:] = sorted(kept, key=lambda item: _order(item, costs)) if hasattr(config, "workerinput") else kept


def _uses_server(item: pytest.Item) -> bool:
    definitions = item._fixtureinfo.name2fixturedefs.get("server", ())
    return any(definition.func.__module__ == "tests.conftest" for definition in definitions)


def _without(items: list[pytest.Item], kept: Iterable[pytest.Item]) -> list[pytest.Item]:
    chosen = {*kept}
    return [item for item in items if item not in chosen]


def _order(item: pytest.Item, costs: dict[str, dict[str, float]]) -> tuple[bool, float, str, bool]:
    """The server's group first, the dearest files next; `ends_the_server` last of its group."""
    group = group_of(item.nodeid)
    ends = item.get_closest_marker("ends_the_server") is not None
    return group != SERVER, -costs.get(group, {}).get("wall_s", 0.0), "" if group == SERVER else group, ends

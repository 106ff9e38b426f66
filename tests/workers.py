"""Which tests share a worker, and in what order: hooks for pytest-xdist. `tests/conftest.py` registers them.

Two workers: one starts processes, and waits for them most of the time, while the other computes in one thread. So what
starts ranks or servers runs one after another, and finds a core for each of two ranks when it needs them. The other
files share what time is left, the dearest first by `tests/costs.json`, each with its fixtures in one worker.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

RECORDED = Path(__file__).with_name("costs.json")
CHEAP_CPU_S = 5
PROCESSES = "ranks and servers"
BESIDE = (
    # mostly compute in the test's own process
    *("tests/unit/", "tests/architecture/", "tests/fuzz/", "tests/test_rollout_matching_sft.py"),
    # mostly wait
    *("tests/faults/test_launcher.py", "tests/faults/test_server_faults.py", "tests/faults/test_sync_faults.py"),
)
"""Files whose tests run beside those that start ranks and the real server."""


def recorded_costs() -> dict[str, dict[str, float]]:
    """File -> CPU seconds and seconds, as `make costs` has measured them."""
    return json.loads(RECORDED.read_text(encoding="utf-8"))


def file_of(nodeid: str) -> str:
    return nodeid.split("::")[0]


def group_of(nodeid: str) -> str:
    return file_of(nodeid) if nodeid.startswith(BESIDE) else PROCESSES


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
    kept = items
    if config.getoption("--cheap"):
        kept = [item for item in items if costs.get(file_of(item.nodeid), {}).get("cpu_s", 0.0) <= CHEAP_CPU_S]
    if config.getoption("--shard"):
        part, parts = map(int, config.getoption("--shard").split("/"))
        kept = kept[part - 1 :: parts]
    config.hook.pytest_deselected(items=_without(items, kept))
    items[:] = sorted(kept, key=lambda item: _order(item, costs))


def _without(items: list[pytest.Item], kept: Iterable[pytest.Item]) -> list[pytest.Item]:
    chosen = {*kept}
    return [item for item in items if item not in chosen]


def _order(item: pytest.Item, costs: dict[str, dict[str, float]]) -> tuple[bool, bool, float, str]:
    """Processes first, the test that ends the server last of them; then the dearest files."""
    group = group_of(item.nodeid)
    if group == PROCESSES:
        return False, item.get_closest_marker("ends_the_server") is not None, 0.0, ""
    return True, False, -costs.get(group, {}).get("wall_s", 0.0), group

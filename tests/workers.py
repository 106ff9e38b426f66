"""Which tests share a worker, and in what order: hooks for pytest-xdist. `tests/conftest.py` registers them.

Three workers on two cores: one has the real server, one starts ranks, and both wait for them much of the time, while
the third computes in one thread. What uses the server runs one after another, and so does what starts ranks. The other
files share what time is left, the dearest first by `tests/costs.json`, each with its fixtures in one worker.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

RECORDED = Path(__file__).with_name("costs.json")
CHEAP_S = 4
SERVER = "the server"
SERVED = (
    "tests/contract/test_backends.py",
    "tests/contract/test_other_weights.py",
    "tests/faults/test_lost_learners.py",
    "tests/faults/test_lost_servers.py",
    "tests/test_servers_come_and_go.py",
    "tests/test_servers_soak.py",
    "tests/test_stage2_ab_vllm_server_mode_smoke.py",
    "tests/test_vllm_guard.py",
    "tests/test_vllm_soak.py",
)
"""Files whose tests use the one real vLLM server."""
RANKS = "ranks"
BESIDE = (
    # mostly compute in the test's own process
    *("tests/unit/", "tests/architecture/", "tests/fuzz/", "tests/test_rollout_matching_sft.py"),
    # mostly wait
    *("tests/faults/test_launcher.py", "tests/faults/test_server_faults.py", "tests/faults/test_sync_faults.py"),
    # of soak alone: one long command each
    *("tests/test_gpu_check.py", "tests/test_study.py"),
)
"""Files whose tests run beside both."""


def recorded_costs() -> dict[str, dict[str, float]]:
    """File -> CPU seconds and seconds, as `make costs` has measured them."""
    return json.loads(RECORDED.read_text(encoding="utf-8"))


def file_of(nodeid: str) -> str:
    return nodeid.split("::")[0]


def group_of(nodeid: str) -> str:
    if nodeid.startswith(SERVED):
        return SERVER
    return file_of(nodeid) if nodeid.startswith(BESIDE) else RANKS


class ByGroup(LoadScopeScheduling):
    """Gives a worker whole groups."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    return ByGroup(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cheap", action="store_true", help=f"leave out files of more than {CHEAP_S} seconds")
    parser.addoption("--shard", metavar="I/N", help="the I-th of N parts of the tests")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """After the tiers have been chosen."""
    costs = recorded_costs()
    kept = items
    if config.getoption("--cheap"):
        kept = [item for item in items if costs.get(file_of(item.nodeid), {}).get("wall_s", 0.0) <= CHEAP_S]
    if config.getoption("--shard"):
        part, parts = map(int, config.getoption("--shard").split("/"))
        kept = kept[part - 1 :: parts]
    config.hook.pytest_deselected(items=_without(items, kept))
    items[:] = sorted(kept, key=lambda item: _order(item, costs))


def _without(items: list[pytest.Item], kept: Iterable[pytest.Item]) -> list[pytest.Item]:
    chosen = {*kept}
    return [item for item in items if item not in chosen]


def _order(item: pytest.Item, costs: dict[str, dict[str, float]]) -> tuple[int, bool, float, str]:
    """Processes first, the test that ends the server last of its group; then the dearest files."""
    group = group_of(item.nodeid)
    if group in (RANKS, SERVER):
        return [RANKS, SERVER].index(group), item.get_closest_marker("ends_the_server") is not None, 0.0, ""
    return 2, False, -costs.get(group, {}).get("wall_s", 0.0), group

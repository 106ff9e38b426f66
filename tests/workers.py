"""Which tests share a worker, and in what order: hooks for pytest-xdist. `tests/conftest.py` registers them.

Two workers, since most tests that start processes wait for them, and most others compute in one thread. The tests of
one file share a worker, as they share its fixtures; all tests of the one vLLM server share one, and begin first. Then
come the dearest files, by `tests/costs.json`, so that none is left alone at the end.
"""

import json
from collections.abc import Generator
from pathlib import Path

import pytest

RECORDED = Path(__file__).with_name("costs.json")
SERVER = "tests/conftest.py::server"
CHEAP_CPU_S = 5


def recorded_costs() -> dict[str, dict[str, float]]:
    """File -> CPU seconds and seconds, as `make costs` has measured them."""
    return json.loads(RECORDED.read_text(encoding="utf-8"))


def file_of(item: pytest.Item) -> str:
    return item.nodeid.split("::")[0]


def group_of(item: pytest.Item) -> str:
    definitions = item._fixtureinfo.name2fixturedefs.get("server", ())
    uses_server = any(definition.func.__module__.endswith("conftest") for definition in definitions)
    return SERVER if uses_server else file_of(item)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cheap", action="store_true", help=f"leave out files of more than {CHEAP_CPU_S} CPU seconds")
    parser.addoption("--shard", metavar="I/N", help="the I-th of N parts of the tests, each about as dear")


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, None, None]:
    """Marks before pytest-xdist reads them; choice and order after the tiers are chosen."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of(item)))
    yield
    costs, kept = recorded_costs(), items
    if config.getoption("--cheap"):
        kept = [item for item in items if costs.get(file_of(item), {}).get("cpu_s", 0.0) <= CHEAP_CPU_S]
    if config.getoption("--shard"):
        part, parts = map(int, config.getoption("--shard").split("/"))
        kept = kept[part - 1 :: parts]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept

    def order(item: pytest.Item) -> tuple[bool, float, bool]:
        group = group_of(item)
        wall = costs.get(group, {}).get("wall_s", 0.0)
        return group != SERVER, -wall, item.get_closest_marker("ends_the_server") is not None

    if hasattr(config, "workerinput"):
        items.sort(key=order)

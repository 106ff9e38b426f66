"""What each file of tests costs: seconds of wall time, and CPU seconds of all processes that it has run.

Hooks of pytest; `tests/conftest.py` registers them. CPU seconds depend little on what else the machine runs, so budgets
are in them. A tier ends with the dearest files and their shares; `--costs FILE` writes all of them: that is how
`make costs` makes `tests/costs.json`, which `tests/architecture/test_costs.py` holds against the budgets.
"""

import json
import time
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tests.workers import file_of

NUM_PRINTED = 25
PROPERTY = "costs"


class Cost(NamedTuple):
    """Seconds."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.wall + other.wall, self.cpu + other.cpu)


BEGUN: dict[str, Cost] = {}
"""When a file began whose tests run now: looking at every process takes as long as many a test."""
FILES: dict[str, Cost] = {}
"""Of the files that have run so far, in the process that reports."""


def spent() -> Cost:
    """Up to now: by this process, by all below it, and by those below them that have ended."""
    me = psutil.Process()
    cpu = 0.0
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # it has ended since it was listed
            cpu += sum(process.cpu_times()[:4])
    return Cost(time.monotonic(), cpu)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--costs", type=Path, metavar="FILE", help="write the seconds of every test file there")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if file_of(item.nodeid) not in BEGUN:
        BEGUN[file_of(item.nodeid)] = spent()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, None, None]:
    """The last test of a file has its seconds, and those of the end of its fixtures. Of what was noted, the teardown's
    report is read."""
    yield
    file = file_of(item.nodeid)
    if nextitem is not None and file_of(nextitem.nodeid) == file:
        return
    begun, now = BEGUN.pop(file), spent()
    # A process that was killed takes its seconds with it.
    item.user_properties.append((PROPERTY, (now.wall - begun.wall, max(0.0, now.cpu - begun.cpu))))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "teardown":
        file = file_of(report.nodeid)
        costs = [Cost(*cost) for name, cost in report.user_properties if name == PROPERTY]
        FILES[file] = sum(costs, FILES.get(file, Cost()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    dearest = sorted(FILES.items(), key=lambda pair: -pair[1].cpu)
    total = sum((cost for _, cost in dearest), Cost())
    if config.getoption("--costs"):
        rounded = {file: {"cpu_s": round(cost.cpu, 1), "wall_s": round(cost.wall, 1)} for file, cost in sorted(dearest)}
        config.getoption("--costs").write_text(json.dumps(rounded, indent=1) + "\n")
    if total.cpu > 60:
        terminalreporter.section(f"{total.cpu:.0f} CPU seconds, {total.wall:.0f} seconds; the dearest files")
        for file, cost in dearest[:NUM_PRINTED]:
            share = 100 * cost.cpu / total.cpu
            terminalreporter.write_line(f"{share:5.1f} %  {cost.cpu:7.1f} CPU s  {cost.wall:7.1f} s  {file}")

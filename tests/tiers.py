"""The three tiers (see pyproject.toml) and one rule for all of them: a test that skips has failed.

Hooks of pytest; `tests/conftest.py` takes them in.
"""

from collections.abc import Generator

import pytest

TIERS = ("soak", "bench")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test belongs to one tier; without a marker to `make test`."""
    for item in items:
        tiers = [tier for tier in TIERS if item.get_closest_marker(tier)]
        assert len(tiers) < 2, f"{item.nodeid} is in two tiers: {tiers}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Skipping would leave a capability unchecked and the last line green."""
    report = yield
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} skipped itself; a check that cannot run here belongs to another tier"
    return report

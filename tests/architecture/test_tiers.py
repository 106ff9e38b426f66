"""The tiers of tests/tiers.py and pyproject.toml, seen from outside: small test files run by a real pytest."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.sources import ROOT

TESTS = """
import pytest

def test_plain(): pass

@pytest.mark.soak
def test_soak(): pass

@pytest.mark.bench
def test_bench(): pass
"""


def last_line(folder: Path, source: str, *arguments: str) -> str:
    """What pytest says at the end about `source`, under the repository's own configuration."""
    for name, here in (("pyproject.toml", "pyproject.toml"), ("tests/tiers.py", "conftest.py")):
        (folder / here).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "test_it.py").write_text(source, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("arguments", [(), ("-m", "soak"), ("-m", "bench")])
def test_each_tier_runs_its_own_test(tmp_path: Path, arguments: tuple[str, ...]):
    assert last_line(tmp_path, TESTS, *arguments).startswith("1 passed, 2 deselected")


@pytest.mark.parametrize("body", ["pytest.skip('no')", "pytest.xfail('no')"])
def test_a_test_that_gives_up_has_failed(tmp_path: Path, body: str):
    assert last_line(tmp_path, f"import pytest\n\ndef test_it(): {body}\n").startswith("1 failed")


def test_a_mark_that_gives_up_has_failed(tmp_path: Path):
    source = "import pytest\n\n@pytest.mark.skipif(True, reason='no')\ndef test_it(): pass\n"
    assert last_line(tmp_path, source).startswith("1 error")  # before the test itself began


def test_a_test_in_two_tiers_is_refused(tmp_path: Path):
    source = "import pytest\n\n@pytest.mark.soak\n@pytest.mark.bench\ndef test_it(): pass\n"
    assert "passed" not in last_line(tmp_path, source, "-m", "soak")


def test_an_unknown_mark_is_refused(tmp_path: Path):
    source = "import pytest\n\n@pytest.mark.slow\ndef test_it(): pass\n"
    assert "error" in last_line(tmp_path, source)

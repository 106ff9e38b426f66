"""What `make gpu` runs, here on the CPU; and what it says of a line that fails, dies or does not end."""

import subprocess
import sys
import time
import zipfile

import pytest

from tests.gpu.check import LINES, Outcome, main, outcome_of, read, row, unpack
from tests.parts import ROOT

LONG_S = 60.0
WITHOUT_THE_TESTS = "import sys; sys.modules.update(dict.fromkeys(('pytest', 'hypothesis', 'xdist')))"


@pytest.mark.soak
def test_every_line_passes_on_the_cpu(capsys):
    code = main(["--device", "cpu"])
    said = capsys.readouterr().out.splitlines()
    assert code == 0, "\n".join(said)
    assert [line.split("passed")[0].strip() for line in said[:-1]] == [" ".join(line) for line in LINES]
    assert said[-1] == f"{len(LINES)} of {len(LINES)} lines passed on cpu"


def test_a_line_that_fails_says_why_and_asks_for_nothing_that_only_the_tests_need(tmp_path, monkeypatch):
    """The machine has neither pytest nor what the tests install."""
    subprocess.run([sys.executable, "-c", f"{WITHOUT_THE_TESTS}; import tests.gpu.check"], cwd=ROOT, check=True)
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_THE_TESTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outcome = outcome_of(("objective", "fp32"), "cpu", tmp_path, time.monotonic() + LONG_S)
    assert not outcome.passed and outcome.seen.endswith("/data/train.jsonl: there is no such file")
    assert row(outcome).startswith("objective fp32 FAILED ")


def test_a_line_that_does_not_end_is_ended(tmp_path):
    outcome = outcome_of(("device",), "cpu", tmp_path, time.monotonic() + 0.2)
    assert (outcome.passed, outcome.seen) == (False, "not done within nine minutes")
    late = outcome_of(("device",), "cpu", tmp_path, time.monotonic() - 1)
    assert late == Outcome(("device",), False, "not reached within nine minutes", 0.0)


@pytest.mark.parametrize(
    ("code", "out", "err", "passed", "seen"),
    [
        (0, 'noise\n{"passed": true, "seen": "all"}\n', "", True, "all"),
        (0, '{"passed": false, "seen": "less"}', "", False, "less"),
        (-11, '{"passed": true, "seen": "all"}', "", False, "all"),  # died when it had told
        (-9, "", "\nKilled\n", False, "ended with code -9, and said: Killed"),
        (1, "[]", "", False, "ended with code 1, and said: []"),
        (3, "", "", False, "ended with code 3, and said: nothing"),
    ],
)
def test_what_a_line_has_told(code, out, err, passed, seen):
    assert read(code, out, err) == (passed, seen)


def test_wheels_are_unpacked_and_not_installed(tmp_path):
    """A machine without a way to a package registry brings them in a folder."""
    folder, target = tmp_path / "wheels", tmp_path / "packages"
    folder.mkdir()
    name = "brought-1.0"
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("brought.py", "HERE = 7\n")
        wheel.writestr(f"{name}.dist-info/METADATA", "Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n")
        wheel.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{name}.dist-info/RECORD", "")
    unpack(folder, target)
    command = [sys.executable, "-c", "import brought; print(brought.HERE)"]
    done = subprocess.run(command, env={"PYTHONPATH": str(target)}, capture_output=True, text=True, check=True)
    assert done.stdout == "7\n"

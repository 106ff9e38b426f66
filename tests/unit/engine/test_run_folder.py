"""A run's folder: one writer at a time, no run over another."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys

import pytest

from ds_stage2ab.engine.run_folder import RunFolder
from ds_stage2ab.errors import EXIT_CONFIG, EXIT_ENVIRONMENT, ConfigError, EnvironmentFault

RESOLVED = {"training": {"seed": 7}, "data": {"user_prompt": "caf\u00e9"}}
CLAIM_AND_WAIT = """
import sys
from pathlib import Path
from ds_stage2ab.engine.run_folder import RunFolder
folder = RunFolder(Path(sys.argv[1]), locked=True)
folder.claim({})
print("claimed", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "first"


@pytest.fixture
def other_run(path):
    """Another process that has claimed the folder and is still at work."""
    command = [sys.executable, "-c", CLAIM_AND_WAIT, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "claimed\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_claiming_locks_the_folder_and_writes_the_config(path):
    folder = RunFolder(path, locked=True)
    folder.claim(RESOLVED)
    text = (path / "config.json").read_text()
    assert json.loads(text) == RESOLVED
    assert "caf\u00e9" in text
    assert (path / "run.lock").read_text() == f"{socket.gethostname()} {os.getpid()}\n"


def test_how_answers_are_drawn_is_written_beside_it_and_given_back_with_it(path):
    folder = RunFolder(path, locked=True)
    folder.claim(RESOLVED, {"sampling.json": {"training": {"temperature": 0.7}}})
    assert json.loads((path / "sampling.json").read_text()) == {"training": {"temperature": 0.7}}
    folder.abandon()
    assert not (path / "sampling.json").exists() and not (path / "config.json").exists()


def test_its_products_have_fixed_places(path):
    folder = RunFolder(path, locked=True)
    names = ("metrics", "warnings", "pictures", "checkpoints")
    places = [str(getattr(folder, name).relative_to(path)) for name in names]
    assert places == ["metrics.jsonl", "warnings.log", "pictures", "checkpoints"]


def test_releasing_removes_the_lock_and_nothing_else(path):
    folder = RunFolder(path, locked=True)
    folder.claim(RESOLVED)
    folder.release()
    assert [file.name for file in path.iterdir()] == ["config.json"]
    folder.release()  # a second time does no harm


def test_an_earlier_run_is_not_overwritten(path):
    first = RunFolder(path, locked=True)
    first.claim(RESOLVED)
    first.release()
    with pytest.raises(ConfigError) as caught:
        RunFolder(path, locked=True).claim({"another": 1})
    assert caught.value.code == EXIT_CONFIG
    assert str(caught.value) == (
        f"{path}: this folder already holds a run\n  fix: write --resume auto to go on with it, set logging.name to"
        " another name, or move the folder away"
    )
    assert json.loads((path / "config.json").read_text()) == RESOLVED
    assert not (path / "run.lock").exists()  # a refused run leaves no lock behind


def test_a_folder_in_use_is_refused(path, other_run):
    with pytest.raises(ConfigError) as caught:
        RunFolder(path, locked=True).claim(RESOLVED)
    owner = f"{socket.gethostname()} {other_run.pid}"
    assert str(caught.value) == (
        f"{path}: another run is writing here (host and process: {owner})\n"
        "  fix: set logging.name to another name, or wait for it to end"
    )
    assert (path / "run.lock").read_text() == owner + "\n"
    assert json.loads((path / "config.json").read_text()) == {}


def test_a_dead_runs_lock_is_taken_over(path, other_run):
    other_run.kill()
    other_run.wait()
    (path / "config.json").unlink()  # it died before it had written anything
    folder = RunFolder(path, locked=True)
    folder.claim(RESOLVED)
    assert (path / "run.lock").read_text() == f"{socket.gethostname()} {os.getpid()}\n"
    assert json.loads((path / "config.json").read_text()) == RESOLVED


def test_a_dead_run_is_still_not_overwritten(path, other_run):
    other_run.kill()
    other_run.wait()
    with pytest.raises(ConfigError, match="this folder already holds a run"):
        RunFolder(path, locked=True).claim(RESOLVED)
    assert not (path / "run.lock").exists()


def test_a_lock_that_vanishes_between_opening_and_locking_is_taken_again(path, monkeypatch):
    """Its owner ends in that moment: the lock of a removed file would keep no third run out."""
    first, second = RunFolder(path, locked=True), RunFolder(path, locked=True)
    first.claim(RESOLVED)
    lock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", lambda *how: (monkeypatch.undo(), first.abandon(), lock(*how)))
    second.claim({"second": 2})
    assert (path / "run.lock").read_text() == f"{socket.gethostname()} {os.getpid()}\n"
    with pytest.raises(ConfigError, match="another run is writing here"):
        RunFolder(path, locked=True).claim({"third": 3})


def test_the_config_is_on_the_disk_before_it_has_its_name(path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.readlink(f"/proc/self/fd/{handle}")))
    RunFolder(path, locked=True).claim(RESOLVED)
    assert flushed == [str(path / ".config.json.partial"), str(path)]


def test_a_root_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentFault) as caught:
        RunFolder(tmp_path / "file" / "run", locked=True).claim(RESOLVED)
    assert caught.value.code == EXIT_ENVIRONMENT
    assert str(caught.value) == (
        f"{tmp_path / 'file' / 'run'}: the run folder cannot be written: Not a directory\n"
        "  fix: set logging.root to a folder that you may write to"
    )


def test_a_run_name_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(EnvironmentFault, match="the run folder cannot be written: File exists"):
        RunFolder(tmp_path / "run", locked=True).claim(RESOLVED)
    assert (tmp_path / "run").read_text() == "in the way"


def test_a_trial_leaves_nothing(path):
    RunFolder(path, locked=True).try_out()
    assert not path.parent.exists()


@pytest.mark.parametrize(
    ("name", "words", "fix"),
    [
        ("file/run", "cannot be written: Not a directory", "set logging.root to"),
        ("file", "cannot be written: Not a directory", "set logging.root to"),
        ("x" * 300, "cannot be written: File name too long", "set logging.name to a shorter name"),
    ],
)
def test_what_cannot_be_made_is_known_at_the_start(tmp_path, name, words, fix):
    (tmp_path / "file").write_text("in the way")
    folder = RunFolder(tmp_path / name, locked=True)

    def start():
        folder.refuse_earlier_run()
        folder.try_out()

    with pytest.raises(EnvironmentFault, match=words) as caught:
        start()
    assert caught.value.fix.startswith(fix) and caught.value.where == str(tmp_path / name)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_early_and_can_be_used(path, monkeypatch, code):
    def no_locks(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(EnvironmentFault, match="cannot be locked") as caught:
        RunFolder(path, locked=True).try_out()
    assert caught.value.fix.startswith("set logging.lock: false")
    folder = RunFolder(path, locked=False)  # the remedy, followed
    folder.try_out()
    folder.claim(RESOLVED)
    with pytest.raises(ConfigError, match="already holds a run"):
        RunFolder(path, locked=False).claim(RESOLVED)


def test_a_full_disk_is_no_matter_of_permission(path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(EnvironmentFault) as caught:
        RunFolder(path, locked=True).claim(RESOLVED)
    assert caught.value.fix.startswith("free space there")

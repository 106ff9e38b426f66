"""A rank's samples, read by the rank itself and by worker processes: the same, with the same errors."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import time
import tracemalloc
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import spawn, synchronize
from pathlib import Path

import pytest
import torch

from ds_stage2ab.carriers import Sample, Skipped
from ds_stage2ab.config.load import load_config
from ds_stage2ab.data.asked import Asked
from ds_stage2ab.data.encode import Encoder
from ds_stage2ab.data.feed import Feed, Reader
from ds_stage2ab.data.records import read_records
from ds_stage2ab.data.stream import SampleOrder, permutation
from ds_stage2ab.errors import EXIT_ENVIRONMENT, EXIT_OK, DataError, EnvironmentFault
from ds_stage2ab.plan import make_plan
from tests import ranks
from tests.parts import ROOT, config_values, merged, write_config
from tests.unit.parts import load_bench

RECORDS, STEPS, MICRO_STEPS, SEED = 16, 2, 2, 3
LONG = 200  # steps of the run


@pytest.fixture(scope="module", autouse=True)
def _workers_are_forks():
    """Each is a process of its own all the same: see `tests/rank_client.py`."""
    own = spawn.get_executable()
    spawn.set_executable(ranks.python())
    yield
    spawn.set_executable(own)


@pytest.fixture(scope="module")
def bench(quickstart):
    return load_bench(quickstart, num_samples=1)


@pytest.fixture
def records(quickstart, tmp_path):
    """Records whose images a test may delete."""
    folder = shutil.copytree(quickstart.data, tmp_path / "data")
    return read_records(folder / "train.jsonl", image_root=None, box_format="bins")[:RECORDS]


@pytest.fixture
def feed(quickstart, bench, records, tmp_path):
    """Makes the feed of rank 1 of 2: 8 samples per step, 2 micro-steps of 2."""

    def build(workers, **changes):
        changes_of_config = {"training.per_device_train_batch_size": 2, "training.max_steps": LONG}
        values = merged(config_values(quickstart, tmp_path, "feed"), changes_of_config)
        plan = make_plan(load_config(write_config(tmp_path / "c.yaml", values)).config, 2, RECORDS)
        order = SampleOrder(SEED, RECORDS, RECORDS)
        asked = Asked.of(records, "Detect every digit.", 0, SEED)
        plain = {"encoder": bench.encoder, "asked": asked, "seed": SEED, "shuffle_objects": False, "skip_bad": False}
        reader = Reader(records=records, order=order, **{**plain, **changes})
        return Feed(reader, plan, 1, workers=workers)

    return build


def everything(feed):
    return [one for step in range(STEPS) for micro_step in range(MICRO_STEPS) for one in feed(step, micro_step)]


def test_workers_change_nothing(feed, records):
    alone, ahead = everything(feed(0)), everything(feed(2))
    # rank 1 of 2 with 2 samples per micro-step: draws 2 3 | 6 7 of the first step, 10 11 | 14 15 of the second
    assert [one.draw for one in alone] == [2, 3, 6, 7, 10, 11, 14, 15]
    order = permutation(SEED, 0, RECORDS)
    assert [one.id for one in alone] == [records[order[one.draw]].id for one in alone]
    for mine, theirs in zip(alone, ahead, strict=True):
        assert (mine.id, mine.draw, mine.prompt_ids, mine.image) == (
            theirs.id, theirs.draw, theirs.prompt_ids, theirs.image
        )  # fmt: skip
        assert torch.equal(mine.vision.pixel_values, theirs.vision.pixel_values)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_goes_on_begins_at_its_step(feed, workers):
    """Worker processes too: those of step 0 are read by nobody."""
    again = feed(workers)
    assert [one.draw for micro_step in range(MICRO_STEPS) for one in again(1, micro_step)] == [10, 11, 14, 15]


def test_the_batches_of_a_long_run_are_made_when_they_are_asked_for(feed):
    """A list of them took seconds and a gigabyte at a few million steps."""
    long = feed(1)
    long.plan = replace(long.plan, total_steps=10**8)
    tracemalloc.start()
    batches = iter(long._loader(first_step=1).batch_sampler)
    assert [next(batches), next(batches)] == [[10, 11], [14, 15]]  # as above
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


@dataclass(frozen=True, slots=True)
class Telling:
    """An encoder that leaves a file for each draw that it reads, in whichever process."""

    encoder: Encoder
    folder: Path

    def encode(self, record, draw):
        (self.folder / str(draw)).touch()
        return self.encoder.encode(record, draw)


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_read_a_step_ahead_and_no_further(feed, bench, tmp_path, workers):
    """One micro-step was asked for, of two; with workers the two behind it are read too, though nobody asks."""
    (tmp_path / "read").mkdir()
    ahead = feed(workers, encoder=Telling(bench.encoder, tmp_path / "read"))
    ahead(0, 0)
    expected = {2, 3, 6, 7, 10, 11} if workers else {2, 3}
    for _ in range(600):
        if draws_in(tmp_path / "read") >= expected:
            break
        time.sleep(0.1)
    time.sleep(0.5)  # for one that should not be read
    assert draws_in(tmp_path / "read") == expected


def draws_in(folder):
    return {int(path.name) for path in folder.iterdir()}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_image_is_an_error_where_it_is_needed(feed, records, workers):
    records[permutation(SEED, 0, RECORDS)[6]].image.unlink()
    broken = feed(workers)
    assert len(broken(0, 0)) == 2
    with pytest.raises(DataError, match=r"\.png is gone") as caught:
        broken(0, 1)
    assert "train.jsonl:" in caught.value.where


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_image_can_be_skipped(feed, records, workers):
    gone = records[permutation(SEED, 0, RECORDS)[6]]
    gone.image.unlink()
    skipping = feed(workers, skip_bad=True)
    skipping(0, 0)
    first, second = skipping(0, 1)
    assert isinstance(first, Skipped) and isinstance(second, Sample)
    assert (first.sample_id, first.draw) == (gone.id, 6) and first.why.endswith(" is gone")


def test_a_killed_worker_is_an_environment_fault_of_who_asks_for_more(feed):
    """And of nothing else that this process does in the meantime."""
    killed = feed(1)
    for micro_step in range(MICRO_STEPS):
        killed(0, micro_step)
    (worker,) = killed._ahead._workers
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    with pytest.raises(EnvironmentFault, match="a process that reads samples has died") as caught:
        the_rest(killed)
    assert (caught.value.code, caught.value.where) == (EXIT_ENVIRONMENT, "data.workers")


def the_rest(feed):
    """All of the run: some are read ahead, and the worker's fork ends a moment later than the worker."""
    for step, micro_step in product(range(1, LONG), range(MICRO_STEPS)):
        feed(step, micro_step)


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """An encoder with a mistake in it."""

    def encode(self, record, draw):
        raise RuntimeError("a mistake of ours")


def test_a_mistake_in_a_worker_is_no_death_of_it(feed):
    with pytest.raises(RuntimeError, match=r"(?s)in DataLoader worker process 0.*in encode.*a mistake of ours"):
        feed(1, encoder=Broken())(0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cramped:
    """An encoder whose process may not make a file, and so no shared memory, of more than 1,000 bytes."""

    encoder: Encoder

    def encode(self, record, draw):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        return self.encoder.encode(record, draw)


@contextmanager
def within(seconds):
    """What is not done by then fails."""

    def too_late(number, frame):
        raise AssertionError(f"still waiting after {seconds} s")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_worker_that_cannot_hand_over_what_it_has_read_says_so_and_dies(feed, bench, capfd):
    """By itself torch would wait for it for ever."""
    with within(60), pytest.raises(EnvironmentFault, match="a process that reads samples has died") as caught:
        feed(1, encoder=Cramped(encoder=bench.encoder))(0, 0)
    assert "/dev/shm" in caught.value.fix
    assert "error: samples cannot be handed over: " in capfd.readouterr().err


@pytest.mark.parametrize(("limits", "code"), [("S", EXIT_OK), ("SH", EXIT_ENVIRONMENT)])
def test_more_samples_in_a_step_than_files_may_be_open(quickstart, tmp_path, limits, code):
    """100 open files are allowed; 64 samples come in two tensors each, and each of those is a file.

    The soft limit is raised; where the hard one forbids that, it is said before anything stands still.
    """
    many = {"training.effective_batch_size": 64, "training.max_steps": 1, "data.workers": 1}
    values = merged(config_values(quickstart, tmp_path / "runs", "many"), many)
    config = write_config(tmp_path / "c.yaml", values)
    limited = f'ulimit -{limits}n 100; exec "$@"'
    command = ["bash", "-c", limited, "-", ranks.python(), "ds_stage2ab/train.py", "--config", str(config)]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr[-3000:]
    if code:
        assert "error: data.workers: with data.workers the samples of a step take up to " in done.stderr
        assert "open files, and 100 are allowed" in done.stderr and "ulimit -Hn" in done.stderr


def test_a_machine_without_semaphores_is_told_at_the_start(feed, monkeypatch):
    """Without a /dev/shm the first queue of the workers ended in a traceback of multiprocessing."""

    def none(*_, **__):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(synchronize, "SemLock", none)
    monkeypatch.setattr(synchronize.Lock, "__init__", none)
    with pytest.raises(EnvironmentFault, match="there are none: Function not implemented") as caught:
        feed(2)
    assert (caught.value.code, caught.value.where) == (EXIT_ENVIRONMENT, "data.workers")
    assert caught.value.fix.endswith("set data.workers: 0")
    assert len(feed(0)(0, 0)) == 2  # the remedy, followed


LEAVE = """
import sys
from tests.unit.data.closing import closed_feed
from ds_stage2ab.runtime.shutdown import exit_now
if __name__ == "__main__":
    closed_feed(sys.argv[1] == "close")
    exit_now(0)
"""


@pytest.mark.parametrize(("how", "noise"), [("close", False), pytest.param("leave", True, marks=pytest.mark.soak)])
def test_a_closed_feed_leaves_no_semaphore(tmp_path, how, noise):
    """A run ends without the interpreter's own clean-up (`exit_now`), which Python's resource tracker reports."""
    (tmp_path / "leave.py").write_text(LEAVE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [ranks.python(), str(tmp_path / "leave.py"), how]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert ("leaked semaphore" in done.stderr) == noise

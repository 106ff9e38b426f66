"""A request to stop: who hears of it, what counts as a second one, and which evaluation is the best."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ds_stage2ab.errors import EXIT_STOPPED, Stopped
from ds_stage2ab.metrics.best_watch import BestWatch
from ds_stage2ab.metrics.journal import EvaluationRecord
from ds_stage2ab.rollout.server.request_pool import RequestPool
from ds_stage2ab.runtime.stop import StopRequest
from ds_stage2ab.schedule import seconds_of
from tests.parts import ROOT

PROGRAM = """
import sys, time
from ds_stage2ab.runtime.stop import StopRequest
stop = StopRequest(0)
stop.listen()
if sys.argv[1] == "saves":
    stop.save_first()
print("up", flush=True)
while True:
    time.sleep(0.01)
    if stop.wanted() and sys.argv[2] == "heeds":
        print(stop.wanted(), flush=True)
        sys.exit(0)
"""


def process(*words):
    command = [sys.executable, "-c", PROGRAM, *words]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert started.stdout.readline() == "up\n"
    return started


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_each_signal_of_a_scheduler_asks(name):
    one = process("saves", "heeds")
    one.send_signal(getattr(signal, name))
    out, err = one.communicate(timeout=20)
    assert (one.returncode, out) == (0, f"{name} to rank 0\n")
    assert err == f"stopping: {name} to rank 0: saves the last finished step and ends; a second one ends it at once\n"


def test_before_there_is_anything_to_save_it_ends_at_once():
    one = process("starts", "ignores")
    one.send_signal(signal.SIGTERM)
    _, err = one.communicate(timeout=20)
    assert one.returncode == EXIT_STOPPED
    assert err == "stopped: by SIGTERM to rank 0, during the start: nothing is lost\n"


def test_a_run_hears_a_signal_before_it_has_read_its_config(tmp_path):
    """Within the first second, of which reading the libraries for it takes a half."""
    command = [sys.executable, "ds_stage2ab/train.py", "--config", str(tmp_path / "none.yaml")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as one:
        while not hears(one.pid, signal.SIGTERM):
            assert one.poll() is None
        one.send_signal(signal.SIGTERM)
        out, err = one.communicate(timeout=20)
    assert (one.returncode, out) == (EXIT_STOPPED, ""), err
    assert err == "stopped: by SIGTERM to rank 0, during the start: nothing is lost\n"


def hears(pid, number):
    """Whether a process has a handler for a signal."""
    (caught,) = re.findall(r"^SigCgt:\s+(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_a_second_signal_counts_after_two_seconds():
    one = process("saves", "ignores")
    one.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    one.send_signal(signal.SIGTERM)
    time.sleep(2.2)
    assert one.poll() is None, "both are one request: a launcher and a terminal send it twice"
    begun = time.monotonic()
    one.send_signal(signal.SIGINT)
    _, err = one.communicate(timeout=20)
    assert one.returncode == EXIT_STOPPED and time.monotonic() - begun < 2
    assert "stopped: at once by a second SIGINT, during the start\n" in err


def test_a_limit_of_time_asks_when_it_is_reached():
    stop, now = StopRequest(0), time.monotonic()
    stop.save_first()
    stop.limit("training.max_hours", lambda: now + 1000)
    assert stop.wanted() is None
    stop.limit("checkpoint.save_by", lambda: now)
    with pytest.raises(Stopped, match=r"checkpoint\.save_by"):
        stop.check()


def test_a_wait_for_a_server_ends_when_the_run_shall_stop():
    def check():
        if time.monotonic() - begun > 0.6:
            raise Stopped("SIGTERM")

    begun = time.monotonic()
    pool = RequestPool(1, [1], lambda request, server, attempt: time.sleep(3))
    with pytest.raises(Stopped):
        next(pool.results(within_s=60, check=check))
    assert time.monotonic() - begun < 2.5


def test_hours_minutes_and_seconds():
    assert [seconds_of(time) for time in ("00:00:01", "03:45:00", "100:00:59")] == [1, 13_500, 360_059]


def evaluations(*values):
    return [EvaluationRecord(step=step, metrics={"eval/f1": f1}, wall_time=0.0) for step, f1 in values]


@pytest.mark.parametrize(
    ("values", "best", "worse"),
    [
        ([], None, 0),
        ([(0, 0.9)], None, 0),
        ([(0, 0.9), (10, 0.1)], 10, 0),
        ([(10, 0.5), (20, 0.5), (30, 0.4)], 10, 2),
        ([(10, 0.5), (20, 0.4), (30, 0.6)], 30, 0),
    ],
)
def test_the_best_evaluation_and_how_many_were_worse_since(values, best, worse):
    watch = BestWatch("eval/f1", 2, evaluations(*values))
    assert (watch.best_step, watch.worse, watch.is_over) == (best, worse, worse >= 2)


def test_nothing_is_the_best_by_a_metric_that_is_not_known():
    watch = BestWatch("eval/ap", None)
    assert not watch.after_evaluation(1, {"eval/f1": 0.5})
    assert watch.after_evaluation(2, {"eval/ap_by_probability": 0.1})
    assert not BestWatch(None, None).after_evaluation(1, {"eval/f1": 0.5})

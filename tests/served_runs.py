"""Launched runs of two ranks that draw their rollouts from a real server, and what is expected of one that loses it."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess
from typing import NamedTuple

from ds_stage2ab.errors import EXIT_ENVIRONMENT
from ds_stage2ab.metrics.journal import StepRecord, read_history
from tests.parts import config_values, merged, write_config
from tests.ranks import train
from tests.vllm_process import server_changes

MOVING = {"training.learning_rate": 0.02, "training.max_steps": 4}  # A B A B
LONGEST_S = 60  # from what happens to the server to the end of the run
START_S = 120


class Ran(NamedTuple):
    """What is left of a run."""

    done: CompletedProcess[str]
    steps: list[StepRecord]
    # finished
    folder: Path


def run(parts, tmp_path, base_url, changes, *, ranks=2) -> Ran:
    """A small run on both channels."""
    values = {**server_changes(base_url), **MOVING, **changes}
    config = merged(config_values(parts, tmp_path / "runs", "small"), values)
    done = train(write_config(tmp_path / "small.yaml", config), ranks=ranks)
    folder = tmp_path / "runs" / "small"
    return Ran(done, finished_steps(folder), folder)


def run_that_loses(parts, tmp_path, base_url, changes, *, happens: Callable[[], None]) -> Ran:
    """A long run to whose server something happens behind the second step; it ends soon afterwards."""
    folder = tmp_path / "runs" / "small"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, parts, tmp_path, base_url, {"training.max_steps": 200, **changes})
        begun = time.monotonic()
        while len(finished_steps(folder)) < 2:
            assert time.monotonic() - begun < START_S and not running.done()
            time.sleep(0.05)
        happens()
        happened = time.monotonic()
        ran = running.result(timeout=LONGEST_S)
    assert time.monotonic() - happened < LONGEST_S
    return ran


def finished_steps(folder: Path) -> list[StepRecord]:
    metrics = folder / "metrics.jsonl"
    return read_history(metrics).steps if metrics.exists() else []


def assert_the_server_ended(ran: Ran, base_url: str) -> None:
    """Words that name the server and a remedy, its exit code, and a checkpoint of every step that was finished."""
    done, steps, folder = ran
    assert done.returncode == EXIT_ENVIRONMENT, done.stdout[-2000:] + done.stderr[-3000:]
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert f"error: {base_url}: " in done.stderr and "\n  fix: " in done.stderr, done.stderr[-3000:]
    saved = folder / "checkpoints" / "latest"
    newest = saved.read_text().strip() if saved.exists() else None
    assert newest == (f"step-{steps[-1].step:06d}" if steps else None)

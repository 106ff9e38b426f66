"""Runs of one learner and some real vLLM servers on this machine, and how simulations of them meet what they took."""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import requests

from ds_stage2ab.config.load import load_config
from ds_stage2ab.metrics.journal import FILE_NAME, read_history
from ds_stage2ab.preflight.report import preflight_report
from ds_stage2ab.simulation.command import simulate
from tests.parts import Quickstart, config_values, merged, write_config
from tests.ranks import train
from tests.vllm_process import MATCHING, running, server_changes

SIZE = f"{MATCHING}.decode_batch_size"
LONGEST = f"{MATCHING}.max_new_tokens"
STILL: dict[str, Any] = {
    # weights that hardly move: all runs have the same answers
    "training.learning_rate": 1e-9,
    "training.effective_batch_size": 16,
    "training.max_steps": 8,
    "stage2_ab.schedule.b_ratio": 0.5,
    "logging.rollouts": True,
    "logging.every_steps": 1,
    LONGEST: 96,
}


class Pace(NamedTuple):
    """What each pass of a server sleeps beside its own time: a device that does not share our cores."""

    pass_s: float
    row_s: float


class Met(NamedTuple):
    """What was foreseen and what was: seconds of a B step, unless the name says something else."""

    name: str
    predicted: float
    taken: float

    @property
    def off(self) -> float:
        return self.predicted / self.taken - 1

    def __str__(self) -> str:
        return f"{self.name:28} {self.predicted:8.2f} predicted, {self.taken:8.2f} taken, {100 * self.off:+4.0f} %"


@contextmanager
def servers(parts: Quickstart, folder: Path, number: int, size: int, pace: Pace | None) -> Iterator[list[str]]:
    """The addresses of so many servers that decode so many rows."""
    with ExitStack() as stack:
        urls = []
        for place in range(number):
            own = folder / f"server-{size}-{place}"
            own.mkdir(parents=True)
            urls.append(stack.enter_context(running(parts, own, "--max-num-seqs", str(size))).base_url)
            if pace is not None:
                body = {"method": "last_longer", "kwargs": pace._asdict()}
                requests.post(f"{urls[-1]}/collective_rpc", json=body, timeout=(5, 60)).raise_for_status()
        yield urls


def run(parts: Quickstart, folder: Path, name: str, urls: Sequence[str], changes: dict[str, Any]) -> Path:
    """The config of a run of one rank, which has ended."""
    served = {**server_changes(""), f"{MATCHING}.vllm.server.servers": [{"base_url": url} for url in urls]}
    values = merged(config_values(parts, folder / "runs", name), {**served, **STILL, **changes})
    config = write_config(folder / f"{name}.yaml", values)
    done = train(config, ranks=1)
    assert done.returncode == 0, done.stderr[-3000:]
    return config


def met(config: Path, recording: Path, *, cores: int | None) -> list[Met]:
    """A run beside its simulation from another run's recording: the B step, and how long its servers had requests."""
    stated = write_config(config.with_suffix(".simulation"), {"recordings": [str(recording)], "cores": cores})
    report = preflight_report(config, None, learners=1, rollout_devices=None, records=None)
    asked = simulate(report, [stated], None).asked
    steps = [one for one in read_history(folder_of(config) / FILE_NAME).steps if one.channel == "B"][1:]
    whole = [one.metrics["time/step_s"] for one in steps]
    busy = [one.metrics["time/step_s"] - one.metrics["time/servers_idle_s"] for one in steps]
    return [
        Met(f"{config.stem}, B step", asked.b.whole, statistics.median(whole)),
        Met(f"{config.stem}, servers", asked.b.servers_busy, statistics.median(busy)),
    ]


def folder_of(config: Path) -> Path:
    loaded = load_config(config)
    return loaded.config.logging.root / loaded.name

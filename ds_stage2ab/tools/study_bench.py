"""Where the study's runs are made and measured: one process for each run, one line of a file for each result.

The results of a domain are `docs/study/<domain>.jsonl`, which goes with the repository: what has been measured on one
machine is not measured again on another. Checkpoints stay below `runs/`; one that is missing is trained again when
something starts from it, which gives the same weights on the same kind of processor.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ds_stage2ab.errors import EXIT_STOPPED, ConfigError, EnvironmentFault, Stopped
from ds_stage2ab.metrics.journal import FILE_NAME, History, read_history
from ds_stage2ab.tools.study_rows import SEALED, Domain

DIGITS = 6
"""Decimals of the figures in the file of results."""


class Results:
    """The results of a domain by the names of what was measured; every change is written at once.

    Args:
        path: a JSONL file, which need not be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.known: dict[str, dict[str, Any]] = {}
        for line in lines:
            entry = json.loads(line)
            self.known[entry.pop("name")] = entry

    def __contains__(self, name: str) -> bool:
        return name in self.known

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self.known[name]

    def put(self, name: str, result: Mapping[str, Any]) -> None:
        """Add a result, or one for another; the file is written whole or not at all."""
        self.known[name] = dict(result)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        lines = (json.dumps({"name": name, **one}) + "\n" for name, one in self.known.items())
        part.write_text("".join(lines), encoding="utf-8")
        part.replace(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One domain's folders, and the two commands that train and measure there."""

    domain: Domain
    data: Path
    root: Path
    # of the runs
    results: Results
    learning_rate: float
    learners: int = 1
    # of each run

    def file(self, part: str) -> Path:
        """The JSONL of a part of the held-out scenes."""
        if part == SEALED:
            return self.data.with_name(f"{self.data.name}-sealed") / "validation.jsonl"
        return self.data / f"{part}.jsonl"

    def train(self, name: str, words: Sequence[str]) -> Path:
        """Train the run of that name, or go on with it; its folder.

        Raises:
            Stopped: the run was stopped on purpose.
            EnvironmentFault: it ended with another code than 0.
        """
        folder = self.root / name
        settings = [*words, f"logging.root={folder.parent}", f"logging.name={folder.name}"]
        launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(self.learners)]
        launcher += ["--log_level", "error", "--master_port", str(_free_port())]
        trainer = ["ds_stage2ab/train.py", "--config", str(self.domain.config), "--resume", "auto"]
        code = subprocess.run([*launcher, *trainer, *_set(settings)], check=False).returncode
        if code == EXIT_STOPPED:
            raise Stopped("the run was stopped, and is saved", where=str(folder), fix="the same command goes on")
        if code:
            fix = "the run's own message is above; the same command goes on"
            raise EnvironmentFault(f"training ended with code {code}", where=str(folder), fix=fix)
        return folder

    def checkpoint(self, name: str) -> Path:
        """The Hugging Face folder of a run's last checkpoint; where that is missing, the run is made, or goes on."""
        words = self.results[name]["set"]
        said = dict(word.split("=", 1) for word in words)
        checkpoints = self.root / name / "checkpoints"
        last, latest = f"step-{int(said['training.max_steps']):06d}", checkpoints / "latest"
        if not latest.is_file() or latest.read_text(encoding="utf-8").strip() != last:
            self.train(name, words)
        return checkpoints / last / "hf"

    def evaluate(self, checkpoint: Path, part: str, words: Sequence[str]) -> dict[str, float]:
        """The figures of a checkpoint on a part of the held-out scenes; of `words` those that say how it answers."""
        settings = [word for word in words if word.startswith("data.codec=")]
        settings += [f"data.validation={self.file(part)}", "evaluation.max_samples=null"]
        command = [sys.executable, "-m", "ds_stage2ab", "evaluate", "--config", str(self.domain.config)]
        command += ["--checkpoint", str(checkpoint), "--format", "json", *_set(settings)]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            why = f"its evaluation ended with code {done.returncode}"
            raise EnvironmentFault(why, where=str(checkpoint), fix="see the message above")
        return rounded(json.loads(done.stdout)["figures"])

    def trained(self, name: str, words: Sequence[str], *, parts: Sequence[str]) -> dict[str, Any]:
        """The result of a run, which is made only if it is not there.

        Args:
            parts: of the held-out scenes, whole; the run itself evaluates few of them on its way.

        Raises:
            ConfigError: the file has a result of that name with other words, of another start perhaps.
        """
        if name not in self.results:
            history = read_history(self.train(name, words) / FILE_NAME)
            figures = {part: self.evaluate(self.root / name, part, words) for part in parts}
            seconds = rounded(seconds_per_step(history))
            self.results.put(name, {"figures": figures, "seconds": seconds, "set": list(words)})
        result = self.results[name]
        if result["set"] != list(words):
            why = f"the result of {name} is of a run with other words: {' '.join(result['set'])}, not {' '.join(words)}"
            fix = f"take out its line, and delete {self.root / name} if it is there"
            raise ConfigError(why, where=str(self.results.path), fix=fix)
        return result

    def measured(self, name: str, checkpoint: Path, parts: Sequence[str]) -> dict[str, Any]:
        """The figures of a checkpoint that no run of the study has made; kept under that name."""
        if name not in self.results:
            figures = {part: self.evaluate(checkpoint, part, []) for part in parts}
            self.results.put(name, {"figures": figures, "seconds": {}, "set": [f"model.path={checkpoint}"]})
        return self.results[name]

    def measure_more(self, name: str, part: str, checkpoint: Path) -> None:
        """Add the figures of a part of the held-out scenes to a result that has none of it."""
        result = self.results[name]
        if part not in result["figures"]:
            result["figures"][part] = self.evaluate(checkpoint, part, result["set"])
            self.results.put(name, result)


def run_module(words: Sequence[str]) -> None:
    """Run a module of ours.

    Raises:
        EnvironmentFault: it ended with another code than 0.
    """
    code = subprocess.run([sys.executable, "-m", *words], check=False).returncode
    if code:
        raise EnvironmentFault(f"{words[0]} ended with code {code}", fix="see its message above")


def seconds_per_step(history: History) -> dict[str, float]:
    """Channel -> median seconds of its logged steps."""
    taken: dict[str, list[float]] = {}
    for step in history.steps:
        taken.setdefault(step.channel, []).append(step.metrics["time/step_s"])
    return {channel: median(seconds) for channel, seconds in taken.items()}


def rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, DIGITS) for name, value in figures.items()}


def _set(settings: Sequence[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def _free_port() -> int:
    """For the launcher, so that two studies, or a study and another run, may share a machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

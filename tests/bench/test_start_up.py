"""How long a user waits before anything has begun, beside what another package takes for the same job.

Medians of pairs: each command takes turns with the ones that it is compared with, so that a busy moment of the machine
meets all of them.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

from ds_stage2ab.config.load import load_config
from ds_stage2ab.config.schema import config_schema, leaves
from tests.architecture.sources import ROOT

LARGEST = "configs/stage2_ab/prod/ab_mixed.yaml"
PAIRS = 15
GOAL_S = 0.35
# What trainers built on transformers' argument classes do with `--config FILE`: unknown keys and types are found.
PEER = (
    "import sys; from transformers import HfArgumentParser, TrainingArguments;"
    "HfArgumentParser(TrainingArguments).parse_json_file(sys.argv[1])"
)


def seconds_of(command: Sequence[str]) -> float:
    """Wall seconds of a whole process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True, timeout=120)
    return time.perf_counter() - start


def medians(*commands: Sequence[str]) -> list[float]:
    """Median wall seconds of each command, all of them taking turns `PAIRS` times."""
    turns = [[seconds_of(command) for command in commands] for _ in range(PAIRS)]
    return [statistics.median(column) for column in zip(*turns, strict=True)]


def test_the_config_that_is_timed_is_the_largest():
    def written(path: str) -> int:
        resolved = load_config(ROOT / path).resolved
        return len(json.dumps(resolved))

    files = [str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")]
    assert written(LARGEST) >= 0.97 * max(map(written, files))
    assert len(list(leaves(config_schema()))) > 80


@pytest.mark.bench
def test_validate_answers_at_once(tmp_path, capsys):
    arguments = tmp_path / "arguments.json"
    arguments.write_text(json.dumps({"output_dir": str(tmp_path), "learning_rate": 1e-4, "max_steps": 10}))
    ours, nothing, peer = medians(["-m", "ds_stage2ab.validate", LARGEST], ["-c", "pass"], ["-c", PEER, str(arguments)])
    with capsys.disabled():
        print(f"\nvalidate {ours:.3f} s; python -c pass {nothing:.3f} s; HfArgumentParser {peer:.3f} s")
        print(f"validate takes {ours / peer:.3f} of HfArgumentParser's time")
    assert ours < GOAL_S
    assert ours < peer


COMMANDS = ((), ("import",), ("export",), ("data",), ("init",), ("predict",), ("report",))


@pytest.mark.bench
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_answers_at_once(command):
    assert medians(["-m", "ds_stage2ab", *command, "--help"])[0] < GOAL_S

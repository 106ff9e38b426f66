"""What users are told to type and answers in seconds is typed here, word by word as the documents have it.

Validating and planning as they stand; of a training run the plan that it would follow, with the same file, ranks and
`--set` words, but not `--resume`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.sources import ROOT, relative, repository_files
from tests.unit.simulation.recordings import write_run
from tests.unit.simulation.test_recorded import PRICE, SETUP

BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
QUICK = re.compile(r"(?:python -m ds_stage2ab\.validate|ds-stage2ab plan) .*")
TRAINING = re.compile(
    r"(?:\w+=\S+ )?deepspeed --num_gpus (\d+) ds_stage2ab/train\.py --config ([^$]*?)(?: --resume \w+)?"
)
OWN = f"extends: {ROOT}/configs/own_data.yaml\ntraining:\n  effective_batch_size: 32\n"
"""my.yaml, which the documents leave to the reader: it divides by every number of ranks in them."""


def typed(text: str) -> list[str]:
    """The commands of a document that can be run here, a line each."""
    lines = [line for block in BLOCK.findall(text) for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    commands = [line.split(" #")[0].strip() for line in lines]
    trained = [found for command in commands if (found := TRAINING.fullmatch(command))]
    planned = [f"ds-stage2ab plan {words} --learners {ranks}" for ranks, words in (one.groups() for one in trained)]
    return list(dict.fromkeys([*(command for command in commands if QUICK.fullmatch(command)), *planned]))


def all_typed() -> list:
    documents = {relative(path): path.read_text(encoding="utf-8") for path in repository_files((".md",))}
    return [
        pytest.param(command, id=f"{name}: {command}") for name, text in documents.items() for command in typed(text)
    ]


@pytest.mark.parametrize("command", all_typed())
def test_it_does_what_it_says(command, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "my.yaml").write_text(OWN, encoding="utf-8")
    (tmp_path / "runs").mkdir()
    write_run(tmp_path / "runs" / "my", PRICE, SETUP)
    command = command.replace("<name>", "some-name")
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert done.stdout


def test_the_commands_are_found():
    assert len(all_typed()) >= 7
    training = "X=1 deepspeed --num_gpus 2 ds_stage2ab/train.py --config \\\n   b --set c=d"
    block = f"```\nds-stage2ab plan a.yaml   # so\n{training}\n```\n"
    assert typed(block) == ["ds-stage2ab plan a.yaml", "ds-stage2ab plan b --set c=d --learners 2"]
    assert typed("ds-stage2ab plan a.yaml") == []

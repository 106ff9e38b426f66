"""The commands of docs/from_a_release.md, line by line as they stand, on the tiny plain model: release to stage 2."""

import contextlib
import io
import json
import re
import shlex
import shutil

import pytest
from safetensors.torch import load_file

from ds_stage2ab.cli import main
from ds_stage2ab.codec.bins import NUM_BINS
from ds_stage2ab.detector_file import read_detector_file
from ds_stage2ab.metrics.journal import read_history
from tests import ranks
from tests.architecture.sources import ROOT

STEPS = 4
PROMPT = "Detect every object in the image and give its box."


def commands() -> list[str]:
    text = (ROOT / "docs" / "from_a_release.md").read_text(encoding="utf-8")
    return re.search(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE).group(1).splitlines()


@pytest.fixture(scope="module")
def walk(quickstart, tmp_path_factory):
    """The folder after all lines, run in their order with the paths of this machine and few steps."""
    folder = tmp_path_factory.mktemp("release")
    small = {
        "data.train": quickstart.data / "train.jsonl",
        "data.validation": quickstart.data / "validation.jsonl",
        "model.precision": "fp32",
        "training.effective_batch_size": 8,
        "training.max_steps": STEPS,
        "training.warmup_steps": 0,
        "training.learning_rate": 0.003,
        "training.global_max_length": 1024,
        "custom.extra.rollout_matching.max_new_tokens": 48,
        "evaluation.max_samples": 4,
        "logging.root": folder / "runs",
        "logging.every_steps": 1,
        "logging.trackers": "[]",
    }
    for line in commands():
        words = shlex.split(_here(line, quickstart, folder))
        sets = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
        sets += ["--set", f"model.path={folder / ('coordinates' if 'stage1' in line else 'stage1')}"]
        if words[0] == "cp":
            run = folder / "runs" / "stage1" / "checkpoints"
            shutil.copytree(run / (run / "latest").read_text().strip() / "hf", words[-1])
        elif words[0] == "deepspeed" or words[1] == "evaluate":  # these watch signals: in a process of their own
            script = words[3:] if words[0] == "deepspeed" else ["-m", "ds_stage2ab", *words[1:]]
            done = ranks.run(*script, *sets, ranks=1)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        else:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
                assert main([*words[1:], *(sets if words[1] == "plan" else [])]) == 0, said.getvalue()
    return folder


def _here(line: str, quickstart, folder) -> str:
    for example, path in {
        "path/to/Qwen3-VL-4B": quickstart.plain,
        "path/to/with-coordinates": folder / "coordinates",
        "path/to/images": quickstart.data / "images" / "validation-00000*.png",
        "path/to/stage1": folder / "stage1",
        "runs/": f"{folder}/runs/",
        "--out found": f"--out {folder}/found",
    }.items():
        line = line.replace(example, str(path))
    return line


def steps_of(folder, name):
    return read_history(folder / "runs" / name / "metrics.jsonl").steps


def test_stage_1_teaches_the_new_tokens(walk):
    """Their rows move, and no other row."""
    steps = steps_of(walk, "stage1")
    assert [(step.channel, step.applied) for step in steps] == [("A", True)] * STEPS
    assert all(step.metrics["loss/coord_ce"] > 0 for step in steps)  # coord_ce_weight is on
    before, after = (table(walk / name) for name in ("coordinates", "stage1"))
    moved = (before != after).any(1)
    assert moved[-NUM_BINS:].all() and not moved[:-NUM_BINS].any()


def table(folder):
    (rows,) = [rows for name, rows in load_file(folder / "model.safetensors").items() if "embed_tokens" in name]
    return rows


def test_its_checkpoint_says_how_it_is_asked_and_predicts(walk):
    assert read_detector_file(walk / "stage1").user_prompt == PROMPT
    lines = [json.loads(line) for line in (walk / "found" / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 10 and all(line["text"] for line in lines)


def test_stage_2_goes_on_with_both_channels(walk):
    assert "".join(step.channel for step in steps_of(walk, "stage2")) == "ABAB"
    assert all(step.applied for step in steps_of(walk, "stage2"))
    assert read_history(walk / "runs" / "stage2" / "metrics.jsonl").evaluations[0].step == 0

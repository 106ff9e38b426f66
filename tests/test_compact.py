"""A run in the compact form: both channels and an evaluation; what it refuses; in `make soak` that it is learned."""

import json
import shutil

import pytest

from ds_stage2ab.errors import EXIT_DATA, EXIT_OK
from ds_stage2ab.metrics.journal import read_history
from tests.parts import config_values, merged, write_config
from tests.ranks import train
from tests.test_keyed import LEARNS, learned

STEPS = 6
SHORT = {
    **LEARNS,
    "data.codec": "compact",
    "stage2_ab.schedule.b_ratio": 0.5,
    "training.max_steps": STEPS,
    "evaluation.max_samples": 8,
    "custom.extra.rollout_matching.max_new_tokens": 24,
}


def test_both_channels_run(shipped, tmp_path):
    """The checkpoint writes JSON, which no line is: what it says is dropped, and what is true is taught."""
    validation = {"data.validation": str(shipped.data / "validation.jsonl")}
    values = merged(config_values(shipped, tmp_path, "compact"), {**SHORT, **validation})
    done = train(write_config(tmp_path / "c.yaml", values), ranks=1)
    assert done.returncode == EXIT_OK, done.stdout[-2000:] + done.stderr[-2000:]
    history = read_history(tmp_path / "compact" / "metrics.jsonl")
    a_steps, b_steps = ([step.metrics for step in history.steps if step.channel == one] for one in "AB")
    assert (len(a_steps), len(b_steps)) == (3, 3)
    assert a_steps[-1]["loss/text_ce"] < a_steps[0]["loss/text_ce"]
    for metrics in b_steps:
        assert metrics["parse/no_json"] == metrics["parse/trailing_garbage"] == 0
        assert metrics["target/missed"] > 0 and metrics["target/go_on"] > 0
    assert history.evaluations[-1].metrics["eval/samples"] == 8


def test_a_description_that_no_line_can_hold_ends_the_run_at_its_line(shipped, tmp_path):
    shutil.copytree(shipped.data, tmp_path / "data")
    file = tmp_path / "data" / "train.jsonl"
    lines = file.read_text().splitlines()
    record = json.loads(lines[2])
    record["objects"] = [{"desc": "two\nlines", "bbox_2d": [0, 0, 9, 9]}]
    file.write_text("\n".join([*lines[:2], json.dumps(record), *lines[3:]]) + "\n")
    values = merged(config_values(shipped, tmp_path, "refused"), {**SHORT, "data.train": str(file)})
    done = train(write_config(tmp_path / "c.yaml", values), ranks=1)
    assert done.returncode == EXIT_DATA
    assert f"{file}:3: the description 'two\\nlines' holds a newline" in done.stderr


@pytest.mark.soak
def test_the_shipped_model_learns_the_compact_form(shipped, tmp_path):
    assert any(one.objects for one in learned(shipped, tmp_path, "compact", least_ok=0.3))

"""A run in the keyed form: both channels and an evaluation; in `make soak` that it is learned."""

import json

import pytest

from ds_stage2ab.codec.text import get_codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.engine.build import load_checkpoint
from ds_stage2ab.errors import EXIT_OK
from ds_stage2ab.matching.parse import parse_rollout
from ds_stage2ab.metrics.journal import read_history
from tests.parts import config_values, merged, write_config
from tests.ranks import run, train
from tests.unit.parts import model_section

STEPS = 90
LEARNS = {
    "stage2_ab.schedule.b_ratio": 0.1,
    "training.optimizer": "adamw",
    "training.learning_rate": 2e-3,
    "training.max_steps": STEPS,
    "evaluation.at_start": False,
    "evaluation.num_pictures": 0,
    "logging.every_steps": 1,
    "logging.rollouts": True,
    "custom.extra.rollout_matching.max_new_tokens": 96,
}


def evaluate(config, checkpoints):
    """The figures that `ds-stage2ab evaluate` gives of the newest checkpoint."""
    newest = checkpoints / (checkpoints / "latest").read_text().strip()
    words = ["evaluate", "--config", str(config), "--checkpoint", str(newest), "--format", "json"]
    done = run("-m", "ds_stage2ab", *words, ranks=1)
    assert done.returncode == EXIT_OK, done.stderr
    return json.loads(done.stdout)["figures"]


def learned(shipped, folder, form, *, least_ok):
    """The well-formed rollouts of a run that begins with the array form, which the form's parser cannot read.

    Args:
        least_ok: share of the held-out answers that it reads at the end.
    """
    changes = {"data.codec": form, "data.validation": str(shipped.data / "validation.jsonl")}
    values = merged(config_values(shipped, folder / "runs", form), {**LEARNS, **changes})
    config = write_config(folder / f"{form}.yaml", values)
    done = train(config, ranks=2)
    assert done.returncode == EXIT_OK, done.stdout[-2000:] + done.stderr[-2000:]
    history = read_history(folder / "runs" / form / "metrics.jsonl")
    b_steps = [step.metrics for step in history.steps if step.channel == "B"]
    assert len(b_steps) == STEPS // 10
    assert b_steps[0]["parse/ok"] < 0.5 < b_steps[-1]["parse/ok"]
    assert b_steps[-1]["match/recall"] > 0
    assert history.evaluations[-1].metrics["eval/parse_ok_rate"] > least_ok
    judged = evaluate(config, folder / "runs" / form / "checkpoints")
    for name in ("eval/f1", "eval/parse_ok_rate", "eval/samples"):
        assert judged[name] == pytest.approx(history.evaluations[-1].metrics[name], rel=1e-6)
    rollouts = (folder / "runs" / form / "rollouts" / "rank-00000.jsonl").read_text().splitlines()
    checkpoint = load_checkpoint(model_section(shipped), min_pixels=None, max_pixels=None)
    vocabulary = Vocabulary.from_tokenizer(checkpoint.tokenizer)
    parsed = [parse_rollout(json.loads(line)["response_ids"], vocabulary, get_codec(form)) for line in rollouts]
    return [one for one in parsed if one.state == "ok"]


def test_both_channels_run(shipped, tmp_path):
    """The checkpoint writes the array form: its objects have no keys, and are dropped, and what is true is taught."""
    short = {
        **LEARNS,
        "data.codec": "keyed",
        "data.validation": str(shipped.data / "validation.jsonl"),
        "stage2_ab.schedule.b_ratio": 0.5,
        "training.max_steps": 4,
        "evaluation.max_samples": 8,
    }
    values = merged(config_values(shipped, tmp_path, "keyed"), short)
    done = train(write_config(tmp_path / "c.yaml", values), ranks=1)
    assert done.returncode == EXIT_OK, done.stdout[-2000:] + done.stderr[-2000:]
    history = read_history(tmp_path / "keyed" / "metrics.jsonl")
    a_steps, b_steps = ([step.metrics for step in history.steps if step.channel == one] for one in "AB")
    assert a_steps[-1]["loss/text_ce"] < a_steps[0]["loss/text_ce"]
    assert [metrics["parse/ok"] for metrics in b_steps] == [0, 0]
    assert all(metrics["target/missed"] > 0 for metrics in b_steps)
    assert history.evaluations[-1].metrics["eval/samples"] == 8


@pytest.mark.soak
def test_the_shipped_model_learns_the_other_form(shipped, tmp_path):
    """After a minute it writes it."""
    well_formed = learned(shipped, tmp_path, "keyed", least_ok=0.7)
    assert any(one.next_number == len(one.objects) + 1 > 2 for one in well_formed)  # object_1, object_2, ...

"""Answers that are cut or no answers at all, and boxes that are wrong or of another convention: in real runs."""

import json

import pytest

from ds_stage2ab.codec.text import get_codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.engine.build import load_checkpoint
from ds_stage2ab.errors import EXIT_DATA, EXIT_OK
from ds_stage2ab.matching.parse import parse_rollout
from ds_stage2ab.metrics.journal import read_history
from tests.parts import config_values, merged, write_config
from tests.ranks import train
from tests.unit.parts import model_section

B_ALONE = {"stage2_ab.schedule.b_ratio": 1, "training.max_steps": 2, "logging.rollouts": True}


def run(parts, folder, changes):
    values = merged(config_values(parts, folder / "runs", "small"), changes)
    return train(write_config(folder / "small.yaml", values), ranks=1)


def steps_of(folder):
    return read_history(folder / "runs" / "small" / "metrics.jsonl").steps


def vocabulary_of(parts):
    return Vocabulary.from_tokenizer(load_checkpoint(model_section(parts), min_pixels=None, max_pixels=None).tokenizer)


def test_of_a_cut_answer_only_complete_objects_are_learned(shipped, tmp_path):
    """18 tokens hold one object and a part of the next: no half object, and no answer that passes for finished."""
    done = run(shipped, tmp_path, B_ALONE | {"custom.extra.rollout_matching.max_new_tokens": 18})
    assert done.returncode == EXIT_OK, done.stdout[-2000:] + done.stderr[-2000:]
    first = steps_of(tmp_path)[0].metrics
    lines = (tmp_path / "runs" / "small" / "rollouts" / "rank-00000.jsonl").read_text().splitlines()
    rollouts = [one for one in map(json.loads, lines) if one["finished_steps"] == 0]
    vocabulary = vocabulary_of(shipped)
    parsed = [parse_rollout(one["response_ids"], vocabulary, get_codec("array")) for one in rollouts]
    cut = [place for place, one in enumerate(rollouts) if one["finish"] == "length"]
    assert cut and first["rollout/truncation_rate"] == len(cut) / len(rollouts)
    assert {parsed[place].state for place in cut} <= {"truncated", "truncated_first_object"}
    true = first["train/objects"]  # of all samples: matched or appended, none of them half
    assert first["match/predicted_per_true"] == pytest.approx(sum(len(one.objects) for one in parsed) / true)


def test_garbage_is_counted_and_the_truth_is_learned(quickstart, tmp_path):
    """A model of random weights, at a high temperature: nothing can be read, and every true object is appended."""
    done = run(quickstart, tmp_path, B_ALONE | {"custom.extra.rollout_matching.decoding.temperature": 2.0})
    assert done.returncode == EXIT_OK, done.stdout[-2000:] + done.stderr[-2000:]
    for step in steps_of(tmp_path):
        assert step.metrics["parse/no_json"] == 1.0
        assert step.metrics["match/recall"] == 0.0
        assert step.metrics["train/objects"] > 0
        assert step.metrics["train/applied"] == 1


def with_boxes(parts, folder, change):
    """The training file with its boxes changed: (record, box) -> box."""
    lines = [json.loads(line) for line in (parts.data / "train.jsonl").read_text().splitlines()]
    for record in lines:
        for thing in record["objects"]:
            thing["bbox_2d"] = change(record, thing["bbox_2d"])
    path = folder / "changed.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in lines))
    return {"data.train": str(path), "data.image_root": str(parts.data), "training.max_steps": 1}


def test_a_wrong_box_is_named_with_its_line(quickstart, tmp_path):
    changes = with_boxes(quickstart, tmp_path, lambda record, box: [box[2], box[1], box[0], box[3]])
    done = run(quickstart, tmp_path, changes)
    assert done.returncode == EXIT_DATA, done.stdout[-2000:]
    assert f"{tmp_path}/changed.jsonl:1: objects[0]: bbox_2d is [" in done.stderr
    assert "x2 > x1 and y2 > y1 must hold" in done.stderr
    assert "Traceback" not in done.stderr


def test_boxes_of_another_convention_are_warned_of(quickstart, tmp_path):
    """Pixels where bins belong: every one of them is legal."""

    def in_pixels(record, box):
        sizes = (record["width"], record["height"]) * 2
        return [round(k / 999 * (size - 1)) for k, size in zip(box, sizes, strict=True)]

    done = run(quickstart, tmp_path, with_boxes(quickstart, tmp_path, in_pixels))
    assert done.returncode == EXIT_OK, done.stdout[-2000:] + done.stderr[-2000:]
    assert "boxes look like pixels: each of " in done.stdout
    assert "set data.box_format: pixel" in done.stdout

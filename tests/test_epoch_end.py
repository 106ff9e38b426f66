"""What becomes of records that fill no whole step, seen in the rollouts of whole runs: each draw is a raw sample."""

import json
from collections import Counter

import pytest

from ds_stage2ab.errors import EXIT_OK
from tests.parts import config_values, merged, write_config
from tests.ranks import train

RECORDS, EPOCHS = 20, 2  # in steps of 8


@pytest.fixture
def drawn(quickstart, tmp_path):
    """(sample ids in the order of their draws, what the run said)."""

    def run(epoch_end):
        lines = (quickstart.data / "train.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "few.jsonl").write_text("".join(lines[:RECORDS]))
        changes = {
            "data.train": str(tmp_path / "few.jsonl"),
            "data.image_root": str(quickstart.data),
            "data.epoch_end": epoch_end,
            "training.max_steps": None,
            "training.num_epochs": EPOCHS,
            "stage2_ab.schedule.b_ratio": 1,
            "custom.extra.rollout_matching.max_new_tokens": 2,
            "logging.rollouts": True,
        }
        values = merged(config_values(quickstart, tmp_path / "runs", epoch_end), changes)
        done = train(write_config(tmp_path / "c.yaml", values), ranks=2)
        assert done.returncode == EXIT_OK, done.stdout[-2000:] + done.stderr[-2000:]
        files = (tmp_path / "runs" / epoch_end / "rollouts").glob("rank-*.jsonl")
        rollouts = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        rollouts.sort(key=lambda one: one["draw"])
        assert [one["draw"] for one in rollouts] == list(range(len(rollouts)))
        return [one["sample_id"] for one in rollouts], done.stdout

    return run


def test_drop_leaves_records_out(drawn):
    """Two steps of 8 in each epoch of 20: 16 records, none of them twice."""
    ids, said = drawn("drop")
    assert len(ids) == 32
    assert len({*ids[:16]}) == len({*ids[16:]}) == 16
    assert "4 = 2 epochs of 2;" in said


def test_wrap_uses_every_record_in_every_epoch(drawn):
    """40 draws are five steps; the third holds the last 4 records of the first epoch and the first 4 of the second."""
    ids, said = drawn("wrap")
    assert Counter(ids) == dict.fromkeys(ids, EPOCHS) and len({*ids}) == RECORDS
    assert len({*ids[:RECORDS]}) == RECORDS
    assert "5 = 2 epochs of 2.5;" in said

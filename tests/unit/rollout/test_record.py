"""The file of a rank's rollouts: one line each, appended at once, readable as it grows."""

import json

import pytest

from ds_stage2ab.carriers import Rollout
from ds_stage2ab.errors import EXIT_ENVIRONMENT, EnvironmentFault, exit_code
from ds_stage2ab.rollout.record import RolloutLog

CAT = Rollout(
    sample_id="\u732b.jsonl:1",
    draw=16,
    prompt_ids=(1, 2, 3),
    response_ids=(10, 11, 12),
    finish="length",
    weight_version="start/2",
    seed=2**63 - 1,
    source="hf",
    seconds=0.12345678,
    probabilities=None,
)
NOTHING = Rollout(
    sample_id="empty",
    draw=17,
    prompt_ids=(1,),
    response_ids=(),
    finish="stop",
    weight_version="start/2",
    seed=0,
    source="http://127.0.0.1:8000",
    seconds=2.0,
    probabilities=None,
)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_holds_everything_but_the_prompt(tmp_path):
    log = RolloutLog(tmp_path / "rollouts", rank=3)
    log(2, [CAT, NOTHING])
    assert log.path == tmp_path / "rollouts" / "rank-00003.jsonl"
    assert lines(log.path) == [
        {
            "finished_steps": 2,
            "draw": 16,
            "sample_id": "\u732b.jsonl:1",
            "response_ids": [10, 11, 12],
            "finish": "length",
            "weight_version": "start/2",
            "seed": 9223372036854775807,  # a whole number to its last digit
            "source": "hf",
            "seconds": 0.123457,
        },
        {
            "finished_steps": 2,
            "draw": 17,
            "sample_id": "empty",
            "response_ids": [],
            "finish": "stop",
            "weight_version": "start/2",
            "seed": 0,
            "source": "http://127.0.0.1:8000",
            "seconds": 2.0,
        },
    ]


def test_other_letters_stay_readable(tmp_path):
    log = RolloutLog(tmp_path, rank=0)
    log(0, [CAT])
    assert "\u732b.jsonl:1" in log.path.read_text(encoding="utf-8")


def test_steps_are_appended_and_are_in_the_file_at_once(tmp_path):
    log = RolloutLog(tmp_path, rank=0)
    log(2, [CAT])
    assert [line["finished_steps"] for line in lines(log.path)] == [2]
    log(5, [NOTHING, CAT])
    assert [(line["finished_steps"], line["sample_id"]) for line in lines(log.path)] == [
        (2, CAT.sample_id),
        (5, "empty"),
        (5, CAT.sample_id),
    ]


def test_a_later_start_goes_on_in_the_same_file(tmp_path):
    RolloutLog(tmp_path, rank=0)(0, [CAT])
    RolloutLog(tmp_path, rank=0)(1, [CAT])
    assert [line["finished_steps"] for line in lines(tmp_path / "rank-00000.jsonl")] == [0, 1]


def test_ranks_write_files_of_their_own(tmp_path):
    for rank in (0, 1):
        RolloutLog(tmp_path, rank)(rank, [CAT])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank-00000.jsonl", "rank-00001.jsonl"]
    assert [line["finished_steps"] for line in lines(tmp_path / "rank-00001.jsonl")] == [1]


def test_a_run_without_rollouts_leaves_no_folder(tmp_path):
    RolloutLog(tmp_path / "rollouts", rank=0)
    assert not (tmp_path / "rollouts").exists()


def test_a_full_disk_ends_the_run_in_words(tmp_path):
    log = RolloutLog(tmp_path, rank=0)
    log.path.symlink_to("/dev/full")
    with pytest.raises(EnvironmentFault, match="the rollouts of step 1 cannot be written: No space left") as raised:
        log(0, [CAT])
    assert exit_code(raised.value) == EXIT_ENVIRONMENT and raised.value.fix

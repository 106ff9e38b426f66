"""The files of a rank's rollouts: one whole line each, appended at once, readable as they grow, never too large."""

import errno
import json
from dataclasses import replace

import pytest

from ds_stage2ab.carriers import Rollout
from ds_stage2ab.errors import EXIT_ENVIRONMENT, EnvironmentFault, exit_code
from ds_stage2ab.rollout import record
from ds_stage2ab.rollout.record import (
    UNTOLD,
    RecordedRollout,
    RolloutLog,
    from_line,
    prompt_digest,
    recorded_files,
    to_line,
)

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
    attempt=1,
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
    attempt=3,
    probabilities=None,
)
LINE = len(to_line(2, CAT))  # bytes


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def small(monkeypatch):
    """Files that are full with two lines of the cat."""
    monkeypatch.setattr(record, "MAX_FILE_BYTES", 2 * LINE)


def test_a_line_holds_everything_and_the_digest_of_the_prompt(tmp_path):
    log = RolloutLog(tmp_path / "rollouts", rank=3, run_attempt=2)
    log(2, [CAT, NOTHING])
    assert log.path == tmp_path / "rollouts" / "rank-00003.jsonl"
    assert lines(log.path) == [
        {
            "finished_steps": 2,
            "draw": 16,
            "sample_id": "\u732b.jsonl:1",
            "prompt_digest": "9db5f4d410570c374b9d541f81304c82",  # blake2b("1,2,3")
            "response_ids": [10, 11, 12],
            "finish": "length",
            "weight_version": "start/2",
            "seed": 9223372036854775807,  # a whole number to its last digit
            "source": "hf",
            "seconds": 0.123457,
            "attempt": 1,
            "run_attempt": 2,
            "prompt_tokens": 3,
        },
        {
            "finished_steps": 2,
            "draw": 17,
            "sample_id": "empty",
            "prompt_digest": "cea3878a334b240469d159ff840b6434",
            "response_ids": [],
            "finish": "stop",
            "weight_version": "start/2",
            "seed": 0,
            "source": "http://127.0.0.1:8000",
            "seconds": 2.0,
            "attempt": 3,
            "run_attempt": 2,
            "prompt_tokens": 1,
        },
    ]


def test_prompts_of_other_ids_order_or_borders_have_other_digests():
    prompts = [(), (0,), (1, 2, 3), (1, 23), (12, 3), (3, 2, 1), (123,)]
    assert len({prompt_digest(prompt) for prompt in prompts}) == len(prompts)
    assert prompt_digest([1, 2, 3]) == prompt_digest((1, 2, 3))


def test_a_line_is_read_back_as_it_was():
    assert from_line(to_line(2, CAT)) == RecordedRollout(
        finished_steps=2,
        draw=16,
        sample_id="\u732b.jsonl:1",
        prompt_digest=prompt_digest((1, 2, 3)),
        response_ids=(10, 11, 12),
        finish="length",
        weight_version="start/2",
        seed=2**63 - 1,
        source="hf",
        seconds=0.123457,
        attempt=1,
        run_attempt=1,
        prompt_tokens=3,
        index=0,
    )
    assert from_line(to_line(2, NOTHING)).response_ids == ()
    assert from_line(to_line(2, CAT)).weight_steps == "2"


def test_a_line_of_an_earlier_version_says_nothing_of_the_start_and_the_prompt():
    values = json.loads(to_line(2, CAT, run_attempt=3))
    assert from_line(json.dumps(values).encode()).run_attempt == 3
    assert from_line(json.dumps(values).encode()).prompt_tokens == len(CAT.prompt_ids)
    del values["run_attempt"], values["prompt_tokens"]
    assert from_line(json.dumps(values).encode()).run_attempt == UNTOLD
    assert from_line(json.dumps(values).encode()).prompt_tokens == UNTOLD
    assert from_line(json.dumps(values).encode()).draw == CAT.draw


def test_a_further_rollout_of_a_sample_says_which_it_is():
    line = to_line(2, replace(CAT, index=3))
    assert from_line(line).index == 3
    assert line == to_line(2, CAT)[:-2] + b', "index": 3}\n'  # a first one's line is that of earlier versions


BROKEN = {
    "no JSON": b"half a li",
    "no UTF-8": b'"\xff"',
    "no mapping": b"[1]",
    "a key is missing": lambda values: values.pop("seed"),
    "a key too many": lambda values: values.update(more=1),
    "text for a number": lambda values: values.update(draw="16"),
    "a truth for a number": lambda values: values.update(attempt=True),
    "nothing for a number": lambda values: values.update(run_attempt=None),
    "text for an index": lambda values: values.update(index="1"),
    "a number for text": lambda values: values.update(sample_id=1),
    "no list": lambda values: values.update(response_ids="10"),
    "no ids": lambda values: values.update(response_ids=[1, "2"]),
    "a negative id": lambda values: values.update(response_ids=[-1]),
    "no finish": lambda values: values.update(finish="soon"),
    "no duration": lambda values: values.update(seconds="long"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_any_other_line_is_refused(name):
    change = BROKEN[name]
    if callable(change):
        values = json.loads(to_line(2, CAT))
        change(values)
        change = json.dumps(values).encode()
    with pytest.raises(ValueError):
        from_line(change)


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


def test_a_file_that_would_become_too_large_is_followed_by_another(tmp_path, small):
    log = RolloutLog(tmp_path, rank=0)
    log(2, [replace(CAT, draw=draw) for draw in range(10, 15)])
    assert names(tmp_path) == ["rank-00000.1.jsonl", "rank-00000.2.jsonl", "rank-00000.jsonl"]
    found = recorded_files(tmp_path)
    assert [[line["draw"] for line in lines(path)] for _, _, path in found] == [[10, 11], [12, 13], [14]]
    assert [path.stat().st_size for _, _, path in found] == [2 * LINE, 2 * LINE, LINE]  # full to the last byte


def test_a_line_that_is_too_large_by_itself_stands_alone(tmp_path, small):
    long = replace(CAT, response_ids=(7,) * 2 * LINE)
    log = RolloutLog(tmp_path, rank=0)
    for rollout in (long, CAT, long, CAT):
        log(2, [rollout])
    assert [len(lines(path)) for _, _, path in recorded_files(tmp_path)] == [1, 1, 1, 1]


def test_files_are_in_the_order_of_their_numbers(tmp_path):
    for name in ("rank-00000.10.jsonl", "rank-00000.2.jsonl", "rank-00000.jsonl", "rank-00001.jsonl", "rank-x.jsonl"):
        (tmp_path / name).touch()
    found = [(rank, number) for rank, number, _ in recorded_files(tmp_path)]
    assert found == [(0, 0), (0, 2), (0, 10), (1, 0)]


def test_a_later_start_goes_on_in_the_last_file(tmp_path, small):
    for step in range(3):
        RolloutLog(tmp_path, rank=0)(step, [CAT])
    assert [line["finished_steps"] for line in lines(tmp_path / "rank-00000.jsonl")] == [0, 1]
    assert RolloutLog(tmp_path, rank=0).path == tmp_path / "rank-00000.1.jsonl"
    RolloutLog(tmp_path, rank=0)(3, [CAT])
    assert [line["finished_steps"] for line in lines(tmp_path / "rank-00000.1.jsonl")] == [2, 3]


@pytest.mark.parametrize("before", [0, 1])
def test_a_later_start_cuts_off_half_a_line(tmp_path, before):
    path = tmp_path / "rank-00000.jsonl"
    path.write_bytes(to_line(2, CAT) * before + to_line(2, CAT)[:-1])
    RolloutLog(tmp_path, rank=0)(5, [NOTHING])
    assert [line["finished_steps"] for line in lines(path)] == [2] * before + [5]


def test_ranks_write_files_of_their_own(tmp_path):
    for rank in (0, 1):
        RolloutLog(tmp_path, rank)(rank, [CAT])
    assert names(tmp_path) == ["rank-00000.jsonl", "rank-00001.jsonl"]
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


def test_a_disk_that_becomes_full_leaves_no_half_line(tmp_path, monkeypatch):
    """The kernel writes what has room, and refuses the rest."""
    log = RolloutLog(tmp_path, rank=0)
    log(0, [CAT])
    monkeypatch.setattr(type(log.path), "open", _with_room_for(LINE // 2, type(log.path).open))
    with pytest.raises(EnvironmentFault, match="No space left"):
        log(1, [CAT])
    monkeypatch.undo()
    assert [line["finished_steps"] for line in lines(log.path)] == [0]


def _with_room_for(room, plain_open):
    """`Path.open`, of files on a disk that takes so many bytes more."""

    class Crowded:
        def __init__(self, file):
            self.file, self.room = file, room

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            taken = self.file.write(data[: self.room])
            self.room -= taken
            return taken

    return lambda path, *arguments, **named: Crowded(plain_open(path, *arguments, **named))


def test_the_text_is_for_people_alone(tmp_path):
    """It stands beside the ids, whatever it is, and a line is the same without it."""
    said = 'a "b"\n\u2028\ufffd'
    RolloutLog(tmp_path, 0, text_of=lambda ids: said * len(ids))(2, [CAT, NOTHING])
    first, second = (tmp_path / "rank-00000.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["text"] for line in (first, second)] == [said * len(CAT.response_ids), ""]
    assert from_line(first) == from_line(to_line(2, CAT))
    with pytest.raises(ValueError, match="exactly"):
        from_line(first.replace(b'"text": "', b'"text": 1, "more": "'))

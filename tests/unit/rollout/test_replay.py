"""Recorded rollouts looked up by draw: of any backend, for any rank, and nothing that is not the same request."""

import re
from dataclasses import replace

import pytest
import torch

from ds_stage2ab.carriers import Rollout, Sample, Vision
from ds_stage2ab.errors import EXIT_CONFIG, EXIT_DATA, ConfigError, DataError, exit_code
from ds_stage2ab.rollout import record
from ds_stage2ab.rollout.base import request_seed, weight_version
from ds_stage2ab.rollout.record import RolloutLog, to_line
from ds_stage2ab.rollout.replay import ReplayBackend, read_recording
from tests.unit.parts import greedy_sampling

SEED = 3
BATCH = 4  # draws of a step
SAMPLING = greedy_sampling(temperature=1.0)
NO_VISION = Vision(pixel_values=torch.zeros(0, 1), image_grid_thw=torch.zeros(0, 3, dtype=torch.long))


def sample(draw, **changes):
    values = {"id": f"s{draw}", "draw": draw, "prompt_ids": (1, 2, draw), **changes}
    return Sample(image=b"", user_prompt="", width=1, height=1, objects=(), vision=NO_VISION, **values)


def recorded(draw, **changes):
    """As the run "then" drew it; the answer names its draw."""
    one = Rollout(
        sample_id=f"s{draw}",
        draw=draw,
        prompt_ids=(1, 2, draw),
        response_ids=(100 + draw, 7),
        finish="length" if draw % 2 else "stop",
        weight_version=weight_version("then", draw // BATCH),
        seed=request_seed(SEED, draw, f"s{draw}"),
        source="http://127.0.0.1:8000",
        seconds=0.25,
        attempt=2,
        probabilities=None,
    )
    return replace(one, **changes)


def write(folder, draws_of_rank):
    """A run folder in which rank r has recorded the draws of place r, in that order."""
    for rank, draws in enumerate(draws_of_rank):
        log = RolloutLog(folder / "rollouts", rank)
        for draw in draws:
            log(draw // BATCH, [recorded(draw)])
    return folder


def backend(run, **changes):
    return ReplayBackend(read_recording(run), **{"start_id": "now", "seed": SEED, **changes})


def generate(replaying, samples, finished_steps=0, sampling=SAMPLING):
    with replaying.current_weights(finished_steps):
        return replaying.generate(samples, sampling, finished_steps=finished_steps)


def test_rollouts_are_in_the_order_of_the_samples(tmp_path):
    replaying = backend(write(tmp_path, [[0, 1, 2, 3, 4, 5]]))
    for order in ([0, 1, 2, 3], [3, 0, 2], [1], []):
        found = generate(replaying, [sample(draw) for draw in order])
        assert [rollout.draw for rollout in found] == order
        assert [rollout.response_ids for rollout in found] == [(100 + draw, 7) for draw in order]


def test_a_rollout_is_the_recorded_one_made_by_the_weights_of_now(tmp_path):
    (found,) = generate(backend(write(tmp_path, [[4, 5]])), [sample(5)], finished_steps=1)
    assert found == replace(recorded(5), source="replay of http://127.0.0.1:8000", weight_version="now/1")


@pytest.mark.parametrize("asked_by", [1, 2, 3])
@pytest.mark.parametrize("recorded_by", [1, 2, 4])
def test_any_number_of_ranks_reads_what_any_number_wrote(tmp_path, recorded_by, asked_by):
    run = write(tmp_path, [range(rank, 12, recorded_by) for rank in range(recorded_by)])
    seen = {}
    for rank in range(asked_by):
        replaying = backend(run)
        for step in range(3):
            mine = [sample(draw) for draw in range(step * BATCH, (step + 1) * BATCH) if draw % asked_by == rank]
            seen |= {rollout.draw: rollout.response_ids for rollout in generate(replaying, mine, step)}
    assert seen == {draw: (100 + draw, 7) for draw in range(12)}


def test_all_files_of_a_rank_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "MAX_FILE_BYTES", 640)  # two lines
    run = write(tmp_path, [range(0, 24, 2), range(1, 24, 2)])
    assert len(list((run / "rollouts").iterdir())) == 12
    replaying = backend(run)
    for step in range(6):
        found = generate(replaying, [sample(draw) for draw in range(step * BATCH, (step + 1) * BATCH)], step)
        assert [rollout.response_ids[0] - 100 for rollout in found] == [*range(step * BATCH, (step + 1) * BATCH)]


def test_the_run_or_its_folder_of_rollouts_may_be_named(tmp_path):
    write(tmp_path, [[0, 1]])
    assert list(read_recording(tmp_path).draws) == list(read_recording(tmp_path / "rollouts").draws) == [0, 1]


@pytest.mark.parametrize("missing", ["nowhere", "", "x" * 300], ids=["no folder", "an empty one", "no name"])
def test_a_run_without_a_recording_is_refused(tmp_path, missing):
    run = tmp_path / missing
    with pytest.raises(ConfigError, match="holds no recorded rollouts") as raised:
        read_recording(run)
    assert raised.value.where == "custom.extra.rollout_matching.replay.run"
    assert "logging.rollouts: true" in raised.value.fix and exit_code(raised.value) == EXIT_CONFIG


def test_a_draw_that_is_missing_is_named(tmp_path):
    replaying = backend(write(tmp_path, [[4, 5, 7]]))
    for draw in (0, 6, 8):
        with pytest.raises(ConfigError, match=f"no rollout is recorded for draw {draw}, which step 2 needs") as raised:
            generate(replaying, [sample(5), sample(draw)], finished_steps=1)
        assert "the 3 that are recorded reach from draw 4 to draw 7" in raised.value.why
        assert "training.max_steps" in raised.value.fix and exit_code(raised.value) == EXIT_CONFIG


OTHERS = {
    # the sample that asks, what of the backend differs, finished steps; what is said, a key of the remedy
    "another sample": ({"id": "other"}, {}, 1, "was recorded of sample s5, and is of sample other here", "data.train"),
    "another prompt": ({"prompt_ids": (1, 2, 6)}, {}, 1, "with another prompt of sample s5", "data.user_prompt"),
    "another seed": ({}, {"seed": 4}, 1, "with the seed .*, and has the seed .* here", "training.seed"),
    "another step": (
        {}, {}, 2, "by weights of 1 finished steps, and is asked for after 2", "training.effective_batch_size",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_another_request_than_was_recorded_is_refused(tmp_path, name):
    asking, changes, steps, why, key = OTHERS[name]
    replaying = backend(write(tmp_path, [[4, 5]]), **changes)
    with pytest.raises(ConfigError, match=f"the rollout of draw 5 .*{why}") as raised:
        generate(replaying, [sample(5, **asking)], finished_steps=steps)
    assert key in raised.value.fix
    assert raised.value.where == str(tmp_path / "rollouts")


def test_a_rollout_of_stale_weights_is_refused(tmp_path):
    """Which a server made that had missed a transfer: the run that recorded it ended there."""
    RolloutLog(tmp_path, rank=0)(1, [recorded(5, weight_version="then/0")])
    with pytest.raises(ConfigError, match="by weights of 0 finished steps, and is asked for after 1"):
        generate(backend(tmp_path), [sample(5)], finished_steps=1)


def test_a_rollout_longer_than_allowed_is_refused(tmp_path):
    replaying = backend(write(tmp_path, [[5]]))
    assert generate(replaying, [sample(5)], 1, replace(SAMPLING, max_new_tokens=2))
    with pytest.raises(ConfigError, match="draw 5 has 2 tokens, more than the 1 that are allowed") as raised:
        generate(replaying, [sample(5)], 1, replace(SAMPLING, max_new_tokens=1))
    assert raised.value.where == "custom.extra.rollout_matching.max_new_tokens"


def test_half_a_line_after_a_kill_is_left_out(tmp_path):
    run = write(tmp_path, [[0, 2], [1]])
    with (run / "rollouts" / "rank-00001.jsonl").open("ab") as file:
        file.write(to_line(0, recorded(3))[:-1])  # whole but for its end: nobody knows that it is
    replaying = backend(run)
    assert [rollout.draw for rollout in generate(replaying, [sample(1), sample(2)])] == [1, 2]
    with pytest.raises(ConfigError, match="no rollout is recorded for draw 3"):
        generate(replaying, [sample(3)])


def test_a_recording_of_an_earlier_version_is_replayed(tmp_path):
    """Whose lines do not say in which start of the run they were drawn, nor how long the prompts were."""
    path = write(tmp_path, [[0, 1]]) / "rollouts" / "rank-00000.jsonl"
    path.write_text(re.sub(r', "run_attempt": 1, "prompt_tokens": [0-9]+}', "}", path.read_text()))
    assert [one.draw for one in generate(backend(tmp_path), [sample(1), sample(0)])] == [1, 0]


def test_a_whole_line_of_something_else_is_named(tmp_path):
    path = write(tmp_path, [[0, 1]]) / "rollouts" / "rank-00000.jsonl"
    path.write_bytes(path.read_bytes() + b'{"draw": 2}\n' + to_line(0, recorded(3)))
    with pytest.raises(DataError, match="this is no recorded rollout: it must be a mapping with exactly") as raised:
        read_recording(tmp_path)
    assert raised.value.where == f"{path}:3" and exit_code(raised.value) == EXIT_DATA


def test_a_line_that_is_nested_too_deeply_is_named(tmp_path):
    path = write(tmp_path, [[0]]) / "rollouts" / "rank-00000.jsonl"
    path.write_bytes(path.read_bytes() + b"[" * 100_000 + b"\n")
    with pytest.raises(DataError, match="this is no recorded rollout: it is nested too deeply"):
        read_recording(tmp_path)


def test_a_rank_that_drew_again_counts_with_its_later_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "MAX_FILE_BYTES", 640)
    write(tmp_path, [[0, 1, 2, 3]])
    RolloutLog(tmp_path / "rollouts", rank=0)(0, [recorded(1, response_ids=(5,))])
    replaying = backend(tmp_path)
    assert [one.response_ids for one in generate(replaying, [sample(1), sample(0)])] == [(5,), (100, 7)]
    assert len(replaying.recording) == 4


def several(draw, number):
    """That many rollouts of a draw; each answer names its place."""
    return [
        recorded(draw, index=index, response_ids=(index,), seed=request_seed(SEED, draw, f"s{draw}", index))
        for index in range(number)
    ]


def test_all_rollouts_of_a_sample_are_found_and_fewer_too(tmp_path):
    log = RolloutLog(tmp_path, rank=0)
    for draw in (1, 0):
        log(0, several(draw, 3))
    replaying = backend(tmp_path)
    asked = [replace(sample(draw), index=index) for draw in (0, 1) for index in range(2)]
    found = generate(replaying, asked)
    assert [(one.draw, one.index, one.response_ids) for one in found] == [
        (0, 0, (0,)), (0, 1, (1,)), (1, 0, (0,)), (1, 1, (1,)),
    ]  # fmt: skip
    assert len(replaying.recording) == 6 and "reach from draw 0 to draw 1" in missing(replaying, sample(2)).why


def test_more_rollouts_of_a_sample_than_were_recorded_are_refused(tmp_path):
    RolloutLog(tmp_path, rank=0)(0, several(1, 2))
    refused = missing(backend(tmp_path), replace(sample(1), index=2))
    assert refused.why == "2 rollouts are recorded for draw 1, and this run takes the best of more"
    assert refused.fix == "set custom.extra.rollout_matching.best_of to 2 or less"


def missing(replaying, one):
    with pytest.raises(ConfigError) as raised:
        generate(replaying, [one])
    return raised.value


def test_a_draw_of_two_ranks_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"draw 2 stands in rank-00000.jsonl too"):
        read_recording(write(tmp_path, [[0, 2], [1, 2]]))


@pytest.mark.parametrize("change", ["gone", "emptied", "another"])
def test_a_file_that_changes_under_the_run_is_refused(tmp_path, change):
    path = write(tmp_path, [[0, 1]]) / "rollouts" / "rank-00000.jsonl"
    replaying = backend(tmp_path)
    first, second = path.read_bytes().splitlines(keepends=True)
    path.unlink()
    if change != "gone":
        path.write_bytes(second + first if change == "another" else b"")
    with pytest.raises(DataError, match="were changed while this run read them") as raised:
        generate(replaying, [sample(0)])
    assert raised.value.where == str(path)


@pytest.mark.parametrize(("source", "streams"), [("hf", False), ("vllm http://10.0.0.7:8000", True)])
def test_answers_come_as_they_came_when_they_were_drawn(tmp_path, source, streams):
    """Packs are closed otherwise while answers still come: the same sums need the same packs. As in a second replay."""
    folder = tmp_path / "drawn"
    RolloutLog(folder / "rollouts", 0)(0, [replace(recorded(0), source=source)])
    for replay in ("first", "second"):
        replaying = backend(folder)
        assert replaying.streams is streams
        rollouts = generate(replaying, [sample(0)])
        assert [rollout.source for rollout in rollouts] == [f"replay of {source}"]
        folder = tmp_path / replay
        RolloutLog(folder / "rollouts", 0)(0, rollouts)

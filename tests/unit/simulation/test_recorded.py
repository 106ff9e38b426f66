"""A recorded run gives its lengths and its costs back, and says what it lacks."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from ds_stage2ab.errors import ConfigError, DataError
from ds_stage2ab.simulation.fit import Asked, fitted, intervals, request_rows, server_costs
from ds_stage2ab.simulation.recorded import read_run
from ds_stage2ab.simulation.step import a_step, b_step
from tests.unit.simulation.recordings import SAMPLES, write_run
from tests.unit.simulation.setups import ONE, costs

SETUP = replace(ONE, decode_batch_size=4, pack_tokens=512)
PRICE = costs(
    server_pass_s=0.02, server_row_s=0.004, server_prompt_token_s=0.0002, server_request_s=0.01,
    server_turnaround_s=0.03, transfer_fixed_s=0.7, transfer_num_bytes=1e6, learner_sample_s=0.01,
    learner_match_s=0.002, learner_token_s=0.0004, learner_a_token_s=0.0008, learner_update_s=0.1,
)  # fmt: skip


def test_lengths_and_costs_come_back(tmp_path):
    requests = write_run(tmp_path / "run", PRICE, SETUP)
    run = read_run(tmp_path / "run")
    assert [(one.prompt, one.answer) for one in run.requests] == [(one.prompt, one.answer) for one in requests]
    segments = [one.segment for one in requests]  # scaled by the mean of the steps behind the first
    assert [one.segment for one in run.requests] == pytest.approx(segments, rel=0.02)
    assert (run.setup, run.samples, run.notes) == (SETUP, SAMPLES, ())
    found = server_costs(run.decoded)
    assert found.pass_s == pytest.approx(0.02, rel=0.15) and found.row_s == pytest.approx(0.004, rel=0.15)
    taken_in = found.request_s + 100 * found.prompt_token_s
    assert taken_in == pytest.approx(0.03, rel=0.25)  # 0.01 + 100 x 0.0002
    assert found.turnaround_s == pytest.approx(0.03, rel=0.4)
    assert run.transfer.fixed_s == pytest.approx(0.7) and run.transfer.num_bytes == 1e6
    learner = run.learner
    assert (learner.sample_s, learner.match_s, learner.update_s) == pytest.approx((0.01, 0.002, 0.1))
    assert (learner.token_s, learner.a_token_s) == pytest.approx((0.0004, 0.0008))


@pytest.mark.parametrize(
    "changes", [{}, {"decode_batch_size": 2}, {"decode_batch_size": 8}, {"servers": 2}, {"servers": 3, "learners": 2}]
)
def test_other_setups_are_foreseen(tmp_path, changes):
    """From costs that were fitted to one setup; the steps of the other by the costs that were true."""
    requests = write_run(tmp_path / "run", PRICE, SETUP)[:SAMPLES]
    run = read_run(tmp_path / "run")
    fitted_costs = replace(PRICE, server=server_costs(run.decoded), transfer=run.transfer, learner=run.learner)
    other = replace(SETUP, **changes)
    assert b_step(requests, other, fitted_costs).whole == pytest.approx(b_step(requests, other, PRICE).whole, rel=0.05)
    assert a_step(requests, other, fitted_costs).whole == pytest.approx(a_step(requests, other, PRICE).whole, rel=0.01)


def test_a_run_without_a_steps_says_so(tmp_path):
    write_run(tmp_path / "run", PRICE, SETUP, with_a=False)
    run = read_run(tmp_path / "run")
    assert run.a_step_s is None and run.learner.a_token_s == run.learner.token_s
    assert len(run.notes) == 1 and "no A step" in run.notes[0]


def test_a_recording_of_an_earlier_version_is_read(tmp_path):
    """Its prompts are what the segments leave for them."""
    requests = write_run(tmp_path / "run", PRICE, SETUP)
    path = tmp_path / "run" / "rollouts" / "rank-00000.jsonl"
    path.write_text(re.sub(r', "prompt_tokens": \d+', "", path.read_text()))
    run = read_run(tmp_path / "run")
    mean = sum(one.prompt for one in requests) / len(requests)
    assert {one.prompt for one in run.requests} == {run.requests[0].prompt}
    assert run.requests[0].prompt == pytest.approx(mean, abs=2)
    assert len(run.notes) == 1 and "prompt_tokens" in run.notes[0] and "record again" in run.notes[0]


def test_what_is_missing_is_named(tmp_path):
    write_run(tmp_path / "run", PRICE, SETUP)
    journal, config = tmp_path / "run" / "metrics.jsonl", tmp_path / "run" / "config.json"
    whole, kept = journal.read_text(), config.read_text()
    journal.write_text("".join(line for line in whole.splitlines(True) if '"A"' in line))
    with pytest.raises(DataError, match="holds no B step") as raised:
        read_run(tmp_path / "run")
    assert raised.value.where == str(journal)
    journal.write_text(whole)
    values = json.loads(kept)
    del values["training"]["packing"]
    config.write_text(json.dumps(values))
    with pytest.raises(DataError, match="lacks 'packing'"):
        read_run(tmp_path / "run")
    config.write_text(kept)
    (tmp_path / "run" / "rollouts" / "rank-00000.jsonl").unlink()
    with pytest.raises(ConfigError, match="holds no recorded rollouts"):
        read_run(tmp_path / "run")


def test_requests_are_put_back_in_time():
    """Two permits, 3, 5, 2 and 4 s: the third begins at 3, the fourth at 5, where both others end."""
    asked = [Asked(rank=0, passes=1, prompt=10, seconds=taken) for taken in (3.0, 5.0, 2.0, 4.0)]
    spans = intervals(asked, [2])
    assert spans.tolist() == [[0, 3], [0, 5], [3, 5], [5, 9]]
    # rows: 2, 2, 2 and 1; taken in meanwhile: both at 0, for the second the third too; the last alone
    assert request_rows(asked, spans) == [[1, 2, 20, 2], [1, 2, 30, 3], [1, 2, 10, 1], [1, 1, 10, 1]]


def test_costs_are_never_negative_and_a_long_measurement_does_not_count():
    counts = [[1, n, 0, 1] for n in range(1, 12)]
    taken = [2.0 + 0.5 * n for n in range(1, 12)]
    found = np.array(fitted(counts, taken))
    assert found.min() >= 0 and np.asarray(counts) @ found == pytest.approx(taken)
    taken[3] += 100.0  # somebody else had the machine
    expected = np.asarray(counts) @ np.array(fitted(counts, taken))
    ratios = sorted(np.array(taken) / expected)
    assert ratios[len(ratios) // 2] == pytest.approx(1.0)

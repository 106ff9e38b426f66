"""The file of a simulation: its form, what it may leave to a recording, and what its lengths are."""

import json
import math
import statistics

import pytest

from ds_stage2ab.errors import EXIT_CONFIG, ConfigError, exit_code
from ds_stage2ab.simulation.stated import read_inputs
from tests.unit.simulation.recordings import as_decoded_alone, write_run
from tests.unit.simulation.test_recorded import PRICE, SETUP

WHOLE = {
    "lengths": {"prompt_tokens": [100, 200], "answer_tokens": {"mean": 300, "deviation": 150}},
    "server": {"pass_s": 0.01, "row_s": 0.001, "prompt_token_s": 0, "request_s": 0.1, "turnaround_s": 0},
    "transfer": {"fixed_s": 1, "version_s": 0, "num_bytes": 8e9},
    "learner": {
        "sample_s": 0, "match_s": 0, "pack_s": 0, "token_s": 1e-4, "a_pack_s": 0, "a_token_s": 2e-4, "update_s": 0.1,
        "exchange_bytes": 0,
    },
}  # fmt: skip


def inputs_of(folder, values):
    file = folder / "stated.yaml"
    file.write_text(json.dumps(values))
    return read_inputs([file])


def test_a_file_states_everything(tmp_path):
    found = inputs_of(tmp_path, WHOLE)
    assert (found.runs, found.cores, found.most_rows, found.most_steps) == ((), None, 64, 8)  # the schema's defaults
    assert found.costs.server.tokens_per_pass == 1.0
    assert found.costs.transfer.learner_bytes_per_s == math.inf
    assert found.costs.learner.a_token_s == 2e-4
    assert "server.pass_s" in found.stated and "transfer.learner_bytes_per_s" not in found.stated


def test_lengths_are_a_list_in_turn_or_drawn_with_mean_and_deviation(tmp_path):
    found = inputs_of(tmp_path, {**WHOLE, "steps": 4})
    steps = found.steps(1000, 4, 10_000, 10_000)
    assert [len(own) for own in steps] == [1000] * 4
    answers = [one.answer for own in steps for one in own]
    assert [one.prompt for one in steps[0][:4]] == [100, 200, 100, 200]
    assert statistics.mean(answers) == pytest.approx(300, rel=0.03)
    assert statistics.stdev(answers) == pytest.approx(150, rel=0.1)
    assert steps[0][0].segment == steps[0][0].prompt + steps[0][0].answer
    assert steps == inputs_of(tmp_path, {**WHOLE, "steps": 4}).steps(1000, 4, 10_000, 10_000)
    assert steps != inputs_of(tmp_path, {**WHOLE, "steps": 4, "seed": 1}).steps(1000, 4, 10_000, 10_000)


def test_answers_and_segments_are_cut_where_the_config_cuts_them(tmp_path):
    (own,) = inputs_of(tmp_path, WHOLE).steps(50, 1, 256, 400)
    assert max(one.answer for one in own) == 256 and max(one.segment for one in own) == 400


def test_what_a_file_leaves_open_is_that_of_the_recording(tmp_path):
    requests = write_run(tmp_path / "run", PRICE, SETUP)
    found = inputs_of(tmp_path, {"recordings": [str(tmp_path / "run")], "server": {"row_s": 0.5}, "cores": 2})
    assert (found.costs.server.row_s, found.cores) == (0.5, 2)
    assert found.costs.transfer.fixed_s == pytest.approx(0.7) and found.stated == ("server.row_s",)
    assert [one.answer for own in found.steps(24, 9, 999, 512) for one in own] == [one.answer for one in requests]
    halves = inputs_of(
        tmp_path, {"recordings": [str(tmp_path / "run")], "lengths": {"answer_tokens": [7], "prompt_tokens": None}}
    ).steps(24, 9, 999, 512)
    assert {one.answer for one in halves[0]} == {7}
    assert [one.prompt for one in halves[0]] == [one.prompt for one in requests[:24]]


def test_more_samples_than_were_recorded_begin_again(tmp_path):
    requests = write_run(tmp_path / "run", PRICE, SETUP)
    (own,) = read_inputs([tmp_path / "run"]).steps(150, 9, 999, 512)
    assert [one.answer for one in own] == [one.answer for one in [*requests, *requests[:30]]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"server": {"pas_s": 1}}, "pas_s"),
        ({"server": {"pass_s": -1}}, "server.pass_s: -1 is less than the minimum of 0"),
        ({"transfer": {"server_bytes_per_s": 0}}, "server_bytes_per_s: 0 is less than or equal"),
        ({"lengths": {"answer_tokens": {"mean": 3}}}, "answer_tokens"),
        ({"lengths": {"answer_tokens": []}}, "answer_tokens"),
        ({"most_rows": 0}, "most_rows: 0 is less"),
        ({"cores": True}, "cores"),
        ({"server": {}}, "pass_s, row_s, prompt_token_s, request_s, turnaround_s must be stated"),
        ({"lengths": {"prompt_tokens": [3]}}, "answer_tokens must be stated"),
        ({"recordings": ["nowhere"]}, "holds no recorded rollouts"),
    ],
)
def test_any_other_file_is_refused(tmp_path, change, words):
    with pytest.raises(ConfigError) as raised:
        inputs_of(tmp_path, {**WHOLE, **change})
    assert words in str(raised.value) and raised.value.fix and exit_code(raised.value) == EXIT_CONFIG


def test_runs_of_two_backends_make_no_simulation(tmp_path):
    for name in ("one", "two"):
        write_run(tmp_path / name, PRICE, SETUP)
    as_decoded_alone(tmp_path / "two")
    with pytest.raises(ConfigError, match="these are of hf and vllm"):
        read_inputs([tmp_path / "one", tmp_path / "two"])
    assert read_inputs([tmp_path / "two"]).costs.server.tokens_per_pass == 1.5

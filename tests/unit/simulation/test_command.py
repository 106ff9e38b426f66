"""`ds-stage2ab plan FILE --simulate`: as users type it, in words and as data."""

import json
from dataclasses import replace

import pytest

from ds_stage2ab.cli import main
from tests.architecture.sources import ROOT
from tests.unit.simulation.recordings import as_decoded_alone, write_run
from tests.unit.simulation.test_recorded import PRICE, SETUP
from tests.unit.simulation.test_stated import WHOLE

CONFIG = str(ROOT / "configs" / "stage2_ab" / "prod" / "ab_mixed.yaml")
MATCHING = "custom.extra.rollout_matching"


@pytest.fixture
def stated(tmp_path):
    file = tmp_path / "stated.yaml"
    file.write_text(json.dumps({**WHOLE, "steps": 1, "most_rows": 8}))
    return str(file)


def planned(capsys, *words):
    code = main(["plan", CONFIG, "--learners", "2", "--rollout-gpus", "6", *words])
    return code, capsys.readouterr()


def test_a_stated_simulation_in_words(capsys, stated):
    code, said = planned(capsys, "--simulate", stated, "--devices", "8")
    assert code == 0, said.err
    assert "simulated steps of 128 samples, b_ratio 0.5; 2 learners, 6 server replicas; nothing was run" in said.out
    assert "splits of 8 devices" in said.out and said.out.count("\n* ") == 2  # the best size, the best split
    assert "server.pass_s" in said.out and "no bound  not stated" in said.out
    assert "learners and servers have a device for each" in said.out


def test_a_stated_simulation_as_data(capsys, stated):
    _, said = planned(capsys, "--simulate", stated, "--devices", "8", "--format", "json")
    found = json.loads(said.out)
    assert [one["decode_batch_size"] for one in found["decode_batch_sizes"]] == [1, 2, 4, 8]
    assert [(one["learners"], one["servers"]) for one in found["splits"]] == [(1, 7), (2, 6), (4, 4)]
    assert found["best_split"] in found["splits"] and found["asked"]["servers_idle"] > 0
    assert found["costs"]["transfer"]["learner_bytes_per_s"] is None
    assert found["asked"]["weights_s"] == 1.0 and found["recorded"] == []


def test_a_recorded_run_is_simulated_itself_too(capsys, tmp_path):
    write_run(tmp_path / "run", PRICE, SETUP)
    words = ("--simulate", str(tmp_path / "run"), "--set", "training.effective_batch_size=24")
    code, said = planned(capsys, *words, "--format", "json")
    assert code == 0, said.err
    (own,) = json.loads(said.out)["recorded"]
    assert own["simulated"]["b_step_s"] == pytest.approx(own["b_step_s"], rel=0.05)
    assert own["simulated"]["a_step_s"] == pytest.approx(own["a_step_s"], rel=0.02)
    _, said = planned(capsys, *words)
    assert f"{tmp_path / 'run'}: A step" in said.out and "as measured" in said.out
    assert "decode_batch_size was 4 in the recording" in said.out


def test_a_recording_of_another_backend_is_refused(capsys, tmp_path):
    write_run(tmp_path / "run", PRICE, SETUP)
    code, said = planned(capsys, "--simulate", str(tmp_path / "run"), "--set", f"{MATCHING}.rollout_backend=hf")
    assert code == 2 and "the config has rollout_backend hf, and the recorded run vllm" in said.err


def test_several_rollouts_of_a_sample_are_refused(capsys, tmp_path):
    write_run(tmp_path / "run", PRICE, SETUP)
    words = ("--set", f"{MATCHING}.best_of=2", "--set", f"{MATCHING}.decoding.temperature=1")
    code, said = planned(capsys, "--simulate", str(tmp_path / "run"), *words)
    assert code == 2 and "several rollouts of a sample are not simulated" in said.err and "best_of" in said.err
    lines = tmp_path / "run" / "rollouts" / "rank-00000.jsonl"
    first = lines.read_text().splitlines()[0]
    lines.write_text(lines.read_text() + first.replace('"run_attempt"', '"index": 1, "run_attempt"') + "\n")
    code, said = planned(capsys, "--simulate", str(tmp_path / "run"))
    assert code == 3 and "name a run without custom.extra.rollout_matching.best_of" in said.err


def test_one_size_of_learners_that_decode_tells_nothing_of_others(capsys, tmp_path):
    for name, size in (("one", 4), ("two", 8)):
        write_run(tmp_path / name, PRICE, replace(SETUP, decode_batch_size=size))
        as_decoded_alone(tmp_path / name)
    words = ("--set", f"{MATCHING}.rollout_backend=hf", "--set", "training.effective_batch_size=24")
    code, said = planned(capsys, "--simulate", str(tmp_path / "one"), *words)
    assert code == 0 and "other decode_batch_size: not known, since only one was recorded" in said.out
    code, said = planned(capsys, "--simulate", str(tmp_path / "one"), str(tmp_path / "two"), *words)
    assert code == 0 and "other decode_batch_size, up to 64 rows" in said.out


def test_learners_that_decode_themselves_have_no_split(capsys, stated):
    words = ("--simulate", stated, "--set", f"{MATCHING}.rollout_backend=hf")
    code, said = planned(capsys, *words)
    assert code == 0 and "2 learners, which decode themselves" in said.out
    code, said = planned(capsys, *words, "--devices", "8")
    assert code == 2 and "a split needs servers" in said.err


def test_a_replay_and_too_few_rows_are_refused(capsys, tmp_path, stated):
    changes = ("--set", f"{MATCHING}.rollout_backend=replay", "--set", f"{MATCHING}.replay.run={tmp_path}")
    code, said = planned(capsys, "--simulate", stated, *changes)
    assert code == 2 and "a replay decodes nothing" in said.err
    few = tmp_path / "few.yaml"
    few.write_text(json.dumps({**WHOLE, "steps": 1, "most_rows": 1}))
    code = main(["plan", CONFIG, "--learners", "8", "--rollout-gpus", "6", "--simulate", str(few)])
    assert code == 2 and "with most_rows 1 there are fewer rows than learners" in capsys.readouterr().err


def test_devices_without_a_simulation_are_refused(capsys):
    code, said = planned(capsys, "--devices", "8")
    assert code == 2 and "--devices: " in said.err and "--simulate" in said.err

"""A checkpoint folder that is meant by a folder of a run."""

import shutil
from pathlib import Path

import pytest

from ds_stage2ab.evaluation.command import weights_folder
from ds_stage2ab.model_folder.checks import check_folder
from tests.unit.model_folder.test_checks import refused


@pytest.fixture
def folder(quickstart, tmp_path) -> Path:
    return Path(shutil.copytree(quickstart.model, tmp_path / "model"))


def test_the_newest_checkpoint_of_a_run_is_meant_by_its_folder(folder, tmp_path, monkeypatch):
    run = tmp_path / "runs" / "one"
    step = run / "checkpoints" / "step-000010"
    step.mkdir(parents=True)
    shutil.move(folder, step / "hf")
    (run / "config.json").write_text("{}")  # the run's own, of another kind
    (run / "checkpoints" / "latest").write_text("step-000010\n")
    for named in (run, run / "checkpoints", run / "checkpoints" / "latest", step, step / "hf"):
        assert weights_folder(named) == step / "hf"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights_folder(Path("~/runs/one")) == step / "hf"
    for named in (run, run / "checkpoints", step):  # a config names one folder
        assert f"fix: set model.path to {step / 'hf'}" in refused(check_folder, named)
    check_folder(step / "hf")


def test_a_newest_checkpoint_that_cannot_be_read_is_none(folder, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").symlink_to("/proc/self/mem")  # an error of the system at its first byte
    assert "no checkpoint here" in refused(weights_folder, tmp_path)
    (tmp_path / "checkpoints" / "latest").unlink()
    (tmp_path / "checkpoints" / "latest").mkdir()
    assert "no checkpoint here" in refused(weights_folder, tmp_path)


def test_a_run_without_a_checkpoint_is_no_checkpoint(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("{}")
    assert "tokenizer.json is missing" in refused(check_folder, weights_folder(tmp_path))

"""`ds-stage2ab init`: the file is valid, fits, and is known to editors wherever it lies."""

import json
import shutil

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry
from ruamel.yaml import YAML

from ds_stage2ab.cli import main
from ds_stage2ab.config.load import load_config
from ds_stage2ab.preflight.report import preflight_report
from ds_stage2ab.validate import main as validate
from tests.architecture.sources import ROOT
from tests.unit.config.test_editors import MODELINE, resource
from tests.unit.qwen4b import write_config

STAGE1 = ROOT / "assets" / "quickstart" / "stage1"
RECORD = '{"images": ["a.png"], "width": 64, "height": 64, "objects": []}\n'


def marks(file) -> list:
    """What an editor marks: the schema of the first line against the file alone."""
    text = file.read_text(encoding="utf-8")
    validator = Draft202012Validator(
        {"$ref": text.splitlines()[0].removeprefix(MODELINE)}, registry=Registry(retrieve=resource)
    )
    return [error.message for error in validator.iter_errors(YAML(typ="safe", pure=True).load(text))]


@pytest.mark.parametrize("options", [(), ("--lora",)])
def test_a_new_config_is_valid_and_fits_one_gpu(options, tmp_path, capsys):
    model, file = write_config(tmp_path / "model"), tmp_path / "deep" / "my.yaml"
    file.parent.mkdir()
    assert main(["init", str(file), "--model", str(model), *options]) == 0
    assert f"ds-stage2ab plan {file} --gpu-memory 80" in capsys.readouterr().out
    for learners in ("1", "2", "4", "8"):
        assert validate([str(file), "--learners", learners]) == 0
    report = preflight_report(file, None, learners=1, rollout_devices=None, records=1000, gpu_gib=80)
    assert report.fit.fits and report.warnings == ()
    # 8.4 GiB of weights, at most 11 of activations; full training: 15 of gradients, the optimizer in host memory
    assert 18 * 2**30 < report.fit.total < (24 if options else 38) * 2**30
    assert max(len(line) for line in file.read_text().splitlines() if str(tmp_path) not in line) <= 120


def test_editors_know_the_file_and_its_children_wherever_they_lie(tmp_path):
    file, child = tmp_path / "a b" / "my.yaml", tmp_path / "elsewhere" / "child.yaml"
    file.parent.mkdir()
    child.parent.mkdir()
    main(["init", str(file)])
    assert marks(file) == []
    header = file.read_text().splitlines()[0]
    child.write_text(f"{header}\nextends: ../a b/my.yaml\ntraining:\n  seed: 7\n")
    assert marks(child) == []
    assert load_config(child).config.training.seed == 7
    child.write_text(child.read_text().replace("seed", "sed"))
    assert len(marks(child)) == 1


@pytest.mark.parametrize(
    ("records", "samples", "steps"),
    [(1, 1, 3), (33, 32, 3), (31, 16, 3), (20_000, 32, 1875)],  # 20,000 / 32 = 625 steps, three times
)
def test_the_data_decide_about_the_steps(records, samples, steps, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text(RECORD * records)
    (data / "validation.jsonl").write_text(RECORD)
    main(["init", str(tmp_path / "my.yaml"), "--data", str(data)])
    config = load_config(tmp_path / "my.yaml").config
    assert (config.data.train, config.data.validation) == (data / "train.jsonl", data / "validation.jsonl")
    assert config.training.effective_batch_size == samples
    # a twentieth of the steps warms up, 50 at most; evaluations after a fifth of them, 500 steps at most
    assert config.training.warmup_steps == min(50, round(0.05 * steps))
    assert config.evaluation.every_steps == max(1, min(500, steps // 5))


def test_one_jsonl_of_another_name_and_none_held_out(tmp_path):
    (tmp_path / "instances.jsonl").write_text(RECORD)
    main(["init", str(tmp_path / "my.yaml"), "--data", str(tmp_path)])
    config = load_config(tmp_path / "my.yaml").config
    assert (config.data.train.name, config.data.validation) == ("instances.jsonl", None)
    assert config.evaluation.every_steps is None


@pytest.mark.parametrize(("tokens", "told"), [(True, False), (False, True)])
def test_a_model_without_coordinate_tokens_is_told_of(tokens, told, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(STAGE1, model, ignore=shutil.ignore_patterns("*.safetensors"))
    if not tokens:
        values = json.loads((model / "tokenizer.json").read_text())
        values["added_tokens"] = [one for one in values["added_tokens"] if "coord" not in one["content"]]
        (model / "tokenizer.json").write_text(json.dumps(values))
    assert main(["init", str(tmp_path / "my.yaml"), "--model", str(model)]) == 0
    assert (f"ds-stage2ab add-coord-tokens {model} DST" in capsys.readouterr().out) == told


def test_what_is_refused(tmp_path, capsys):
    (tmp_path / "my.yaml").write_text("mine")
    (tmp_path / "a.jsonl").write_text(RECORD)
    (tmp_path / "b.jsonl").write_text(RECORD)
    assert main(["init", str(tmp_path / "my.yaml")]) == 2
    assert (tmp_path / "my.yaml").read_text() == "mine"
    assert main(["init", str(tmp_path / "new.yaml"), "--data", str(tmp_path)]) == 3
    assert main(["init", str(tmp_path / "new.yaml"), "--data", str(tmp_path / "none")]) == 3
    assert main(["init", str(tmp_path / "none" / "new.yaml")]) == 4
    said = capsys.readouterr().err
    for words in ("exists already", "holds a.jsonl, b.jsonl, and which one", "holds no JSONL", "cannot be written"):
        assert words in said
    assert not (tmp_path / "new.yaml").exists()


def test_the_prompts_are_those_that_the_checkpoint_was_trained_with(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(STAGE1, folder)
    values = json.loads((folder / "detector.json").read_text())
    told = {"system_prompt": 'Say "no" {x}: #1', "user_prompt": "Find: a\nb", "codec": "keyed"}
    (folder / "detector.json").write_text(json.dumps({**values, **told}))
    assert main(["init", str(tmp_path / "my.yaml"), "--model", str(folder)]) == 0
    data = load_config(tmp_path / "my.yaml").config.data
    assert {key: getattr(data, key) for key in told} == told
    assert "detector.json" in (tmp_path / "my.yaml").read_text()

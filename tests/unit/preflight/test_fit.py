"""`plan --gpu-memory`: what is proposed makes it fit, by the same arithmetic."""

import json
from dataclasses import replace

import pytest

from ds_stage2ab.cli import main
from ds_stage2ab.config.load import load_config
from ds_stage2ab.preflight.fit import GIB, RESERVE_GIB, fit
from ds_stage2ab.preflight.model_shape import read_shape
from tests.architecture.sources import ROOT
from tests.unit.qwen4b import write_config

TEMPLATE = ROOT / "configs" / "own_data.yaml"


@pytest.fixture(scope="module")
def shape(tmp_path_factory):
    return read_shape(write_config(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def config():
    loaded = load_config(TEMPLATE).config
    return replace(loaded, model=replace(loaded.model, gradient_checkpointing=False))


def settings(changes):
    return [one.setting.split(" (")[0].split(", with ")[0] for one in changes]


def test_a_gpu_that_is_large_enough(shape, config):
    # 8.3 of weights, 16.5 of gradients, 49.6 of optimizer state, 2.8 of buckets, 80 of activations: 157
    found = fit(shape, config, learners=1, gpu_gib=161)
    assert found.fits and (found.alone, found.together) == ((), ())
    assert round(found.total / GIB) == 157


def test_one_change_is_enough_for_eight_gpus(shape, config):
    found = fit(shape, config, learners=8, gpu_gib=80)  # 99 GiB each
    assert not found.fits and found.together == ()
    assert settings(found.alone) == [
        "model.gradient_checkpointing: true",
        "training.global_max_length: 4096",
        "model.freeze: [vision, aligner]",
    ]
    assert all(one.total <= found.room == (80 - RESERVE_GIB) * GIB for one in found.alone)


@pytest.mark.parametrize(
    ("gpu_gib", "wanted"),
    [
        (80, ["model.gradient_checkpointing: true", "deepspeed.offload_optimizer: cpu"]),
        (24, ["model.gradient_checkpointing: true", "tuner.type: lora"]),
        (8, []),
    ],
)
def test_the_fewest_changes_together(shape, config, gpu_gib, wanted):
    found = fit(shape, config, learners=1, gpu_gib=gpu_gib)
    assert found.alone == ()
    assert settings(found.together) == wanted
    assert not wanted or found.together[-1].total <= found.room < found.together[0].total


@pytest.mark.parametrize("learners", [1, 8])
@pytest.mark.parametrize("gpu_gib", [20, 24, 40, 80])
def test_a_proposal_is_a_remedy(shape, learners, gpu_gib, tmp_path, capsys):
    """Set as it is written, it makes the plan say that it fits."""
    found = fit(shape, load_config(TEMPLATE).config, learners=learners, gpu_gib=gpu_gib)
    model = write_config(tmp_path / "model")
    for changes in [[one] for one in found.alone] or [found.together]:
        words = [word for one in changes for word in one.setting.split(" (")[0].split(", with ")]
        sets = [option for word in words for option in ("--set", _full(word))]
        arguments = ["plan", str(TEMPLATE), "--learners", str(learners), "--records", "1000", "--format", "json"]
        assert main([*arguments, "--gpu-memory", str(gpu_gib), "--set", f"model.path={model}", *sets]) == 0
        assert json.loads(capsys.readouterr().out)["fit"]["fits"]


def _full(words: str) -> str:
    key, value = words.split(": ")
    return f"{key if '.' in key else f'tuner.{key}'}={value}"


@pytest.mark.parametrize(
    ("gib", "words"),
    [("200", "fits a GPU of 200 GiB"), ("60", "each of these alone makes it fit"), ("8", "no change of the config")],
)
def test_the_words(gib, words, tmp_path, capsys):
    model = write_config(tmp_path / "model")
    arguments = ["plan", str(TEMPLATE), "--learners", "1", "--records", "1000", "--set", f"model.path={model}"]
    assert main([*arguments, "--gpu-memory", gib]) == 0
    assert words in capsys.readouterr().out


def test_an_unknown_model_is_not_compared(capsys):
    assert main(["plan", str(TEMPLATE), "--learners", "1", "--records", "1000", "--gpu-memory", "80"]) == 0
    assert "no estimate" in capsys.readouterr().out

"""The shipped configs: valid under every topology that they are made for, one place per value, no repetition."""

from fractions import Fraction
from pathlib import Path

import pytest
from deepspeed.runtime.config import DeepSpeedConfig

from ds_stage2ab.config.document import EXTENDS, merge
from ds_stage2ab.config.load import load_config
from ds_stage2ab.config.nodes import Node, parse_yaml
from ds_stage2ab.config.problems import Place
from ds_stage2ab.config.removed import removed_keys
from ds_stage2ab.config.servers import request_window, server_slots
from ds_stage2ab.plan import make_plan
from ds_stage2ab.validate import main as validate

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))
TREE = ROOT / "configs" / "stage2_ab"
STAGE2 = sorted(TREE.rglob("*.yaml"))
DECODE = ("custom", "extra", "rollout_matching", "decode_batch_size")
NAMES = {
    "base_rollout_matching_sft", "base_smoke_runtime",
    "prod/base", "prod/a_only_base", "prod/a_only_iter-1", "prod/a_only_iter-3", "prod/a_only_iter-4",
    "prod/ab_mixed", "prod/b_only",
    "smoke/a_only_iter1", "smoke/ab_mixed", "smoke/b_only",
}  # fmt: skip


def name_of(path: Path) -> str:
    return str(path.relative_to(TREE).with_suffix(""))


def written(path: Path) -> Node:
    """What one file says itself."""
    root, problems = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    assert not problems
    return root


def inherited(path: Path) -> Node:
    """What the bases of a file say together, by the rules of merging."""
    root = written(path)
    bases = Node(Place(str(path), 1, 1), "nothing", entries={})
    if EXTENDS in root.entries:
        base = path.parent / root.entries[EXTENDS].value.scalar
        bases = merge(inherited(base), written(base))
    return bases


def values_of(node: Node, path: tuple[str, ...] = ()):
    """(path, value as written) of every scalar and list."""
    for key, entry in node.entries.items():
        if entry.value.entries is None:
            yield (*path, key), entry.value.scalar if entry.value.items is None else [i.text for i in entry.value.items]
        else:
            yield from values_of(entry.value, (*path, key))


def test_the_tree_is_complete():
    assert {name_of(path) for path in STAGE2} == NAMES


@pytest.mark.parametrize("learners", [1, 2, 4, 8])
def test_the_tree_is_valid_on_any_number_of_learners_and_beside_six_rollout_devices(learners, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    files = [str(path.relative_to(ROOT)) for path in STAGE2]
    assert validate([*files, "--learners", str(learners), "--rollout-gpus", "6"]) == 0
    assert validate([*files, "--learners", str(learners)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 * len(files)


def test_one_base_sets_the_decode_batch():
    setting = [path for path in STAGE2 if DECODE in dict(values_of(written(path)))]
    assert [name_of(path) for path in setting] == ["base_rollout_matching_sft"]
    assert {load_config(path).config.rollout_matching.decode_batch_size for path in STAGE2} == {4}


@pytest.mark.parametrize("path", STAGE2, ids=name_of)
def test_a_child_says_only_what_distinguishes_it(path):
    below = dict(values_of(inherited(path)))
    own = {key: value for key, value in values_of(written(path)) if key != (EXTENDS,)}
    assert [key for key, value in own.items() if key in below and below[key] == value] == []
    assert own


@pytest.mark.parametrize("path", STAGE2, ids=name_of)
def test_the_channels_and_backends_are_those_of_the_names(path):
    config = load_config(path).config
    b_ratio, backend = config.stage2_ab.schedule.b_ratio, config.rollout_matching.rollout_backend
    expected = {"ab_mixed": (Fraction(1, 2), "vllm"), "b_only": (Fraction(1), "vllm")}
    assert (b_ratio, backend) == expected.get(path.stem, (Fraction(0), "hf"))
    if "iter" in path.stem:
        assert config.stage2_ab.n_softctx_iter == int(path.stem[-1])


@pytest.mark.parametrize("path", [path for path in STAGE2 if "smoke" in str(path)], ids=name_of)
def test_smoke_runs_have_the_batch_of_64(path):
    training = load_config(path).config.training
    assert (training.per_device_train_batch_size, training.effective_batch_size) == (1, 64)


@pytest.mark.parametrize("path", [path for path in STAGE2 if path.parent.name == "prod"], ids=name_of)
def test_production_runs_train_adapters(path):
    assert load_config(path).config.tuner.type in ("lora", "dora")


def test_the_launcher_topology_fills_the_servers():
    section = load_config(TREE / "prod" / "ab_mixed.yaml").config.rollout_matching
    replicas = [1] * len(section.vllm.server.servers)
    assert request_window(section.decode_batch_size, replicas, 2) == 12
    assert server_slots(section.decode_batch_size, replicas, 2) == [[2] * 6, [2] * 6]


def test_no_shipped_file_names_a_removed_key():
    removed = {tuple(row["key"].split(".")) for row in removed_keys() if "value" not in row}
    for path in SHIPPED:
        keys = [key[:depth] for key, _ in values_of(written(path)) for depth in range(1, len(key) + 1)]
        assert not removed & set(keys), path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_deepspeed_accepts_the_dictionary_that_is_made_of_it(path):
    made = make_plan(load_config(path).config, 1, 10_000).deepspeed_config
    read = DeepSpeedConfig(made)
    assert read.train_batch_size == made["train_batch_size"]
    assert read.gradient_accumulation_steps == made["gradient_accumulation_steps"]
    assert read.zero_config.stage == made["zero_optimization"]["stage"]
    assert read.gradient_clipping == made["gradient_clipping"]

"""The resolved config with origins: a config itself, and every value at its place."""

from pathlib import Path

import pytest

from ds_stage2ab.config.load import check_config, load_config
from ds_stage2ab.config.overrides import read_overrides
from ds_stage2ab.config.resolved import as_yaml, origins

ROOT = Path(__file__).resolve().parents[3]
FILES = [*sorted((ROOT / "configs").rglob("*.yaml")), *sorted((ROOT / "tests/examples/valid").glob("*.yaml"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_lines_are_a_config_that_resolves_to_the_same(path, tmp_path):
    checked = check_config(path)
    again = tmp_path / "again.yaml"
    again.write_text(as_yaml(checked.resolved, checked.document), encoding="utf-8")
    assert load_config(again).resolved == checked.resolved


@pytest.mark.parametrize(
    "prompt",
    [
        "a: b",
        "# no comment",
        "- x",
        "true",
        "1e-4",
        "~",
        " blank ",
        'a "b" \\ c',
        "two\nlines\ttab",
        "\u6f22",
        "\U0001f600",
        "x:",
    ],
)
def test_any_text_comes_back_as_it_was(prompt, tmp_path):
    resolved = load_config(ROOT / "tests/examples/valid/minimal.yaml").resolved
    resolved["data"]["user_prompt"] = prompt
    again = tmp_path / "again.yaml"
    again.write_text(as_yaml(resolved, check_config(ROOT / "tests/examples/valid/minimal.yaml").document))
    assert load_config(again).config.data.user_prompt == prompt


def test_every_value_names_the_line_the_argument_or_the_default_that_it_came_from(tmp_path):
    (tmp_path / "base.yaml").write_text("training:\n  seed: 1\n  packing: false\n")
    (tmp_path / "child.yaml").write_text(
        f"extends: [{ROOT}/tests/examples/valid/minimal.yaml, base.yaml]\n"
        "custom:\n  extra:\n    rollout_matching:\n      vllm:\n        server:\n          servers:\n"
        "            - base_url: http://localhost:8000\n"
    )
    checked = check_config(tmp_path / "child.yaml", overrides=read_overrides(["training.seed=2"]))
    found = origins(checked.resolved, checked.document)
    servers = "custom.extra.rollout_matching.vllm.server.servers.0"
    assert found["training.seed"] == "--set training.seed=2"
    assert found["training.packing"] == f"{tmp_path}/base.yaml:3"
    assert found[f"{servers}.base_url"] == f"{tmp_path}/child.yaml:8"
    assert found[f"{servers}.group_port"] == found["training.adam_beta1"] == "default"
    text = as_yaml(checked.resolved, checked.document)
    assert all(f"# {source}" in text for source in found.values())

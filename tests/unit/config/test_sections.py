from dataclasses import MISSING, fields, is_dataclass
from fractions import Fraction
from pathlib import Path
from types import NoneType
from typing import get_args, get_origin

from ds_stage2ab.config.load import load_config
from ds_stage2ab.config.schema import config_schema, leaves
from ds_stage2ab.config.sections import Config, build_config

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "valid"
KINDS = {
    int: {"integer"},
    float: {"number"},
    str: {"string"},
    Path: {"string"},
    bool: {"boolean"},
    tuple: {"array"},
    Fraction: {"number"},
    NoneType: {"null"},
}


def typed_leaves(section: type, path=()):
    for field in fields(section):
        if is_dataclass(field.type):
            yield from typed_leaves(field.type, (*path, field.name))
        else:
            yield (*path, field.name), field.type


def schema_kinds(kind: type) -> set[str]:
    if get_origin(kind) is tuple:
        return KINDS[tuple]
    members = get_args(kind) or (kind,)
    return set().union(*(KINDS[member] for member in members))


def test_sections_and_schema_name_the_same_keys():
    assert {path for path, _ in typed_leaves(Config)} == {path for path, _ in leaves(config_schema())}


def test_sections_and_schema_give_them_the_same_types():
    schemas = dict(leaves(config_schema()))
    for path, kind in typed_leaves(Config):
        declared = schemas[path]["type"]
        assert schema_kinds(kind) == set(declared if isinstance(declared, list) else [declared]), path


def test_sections_hold_no_defaults():
    def classes(section: type):
        yield section
        for field in fields(section):
            if is_dataclass(field.type):
                yield from classes(field.type)

    for section in classes(Config):
        assert all(f.default is MISSING and f.default_factory is MISSING for f in fields(section)), section


def at(config: object, path: tuple[str, ...]) -> object:
    for name in path:
        config = getattr(config, name)
    return config


def test_every_key_of_a_file_arrives_with_its_value_and_type():
    loaded = load_config(EXAMPLES / "every_key.yaml")
    schema_of = dict(leaves(config_schema()))
    defaults = {path: schema.get("default") for path, schema in schema_of.items()}
    for path, kind in typed_leaves(Config):
        value = at(loaded.config, path)
        members = tuple(get_origin(member) or member for member in (get_args(kind) or (kind,)))
        allowed = (tuple,) if get_origin(kind) is tuple else members
        assert type(value) in allowed or isinstance(value, Path), path
        # these belong to the other target, so no file can give all keys another value than their defaults
        if len(schema_of[path].get("enum", "two")) > 1 and path[-1] not in ("rewrite_order", "keep_spurious"):
            assert value != defaults[path], path  # the example gives every key another value than its default


def test_the_order_of_a_rewritten_answer_arrives():
    section = load_config(EXAMPLES / "rewritten_as_generated.yaml").config.stage2_ab.channel_b
    assert (section.target, section.rewrite_order, section.keep_spurious) == ("rewrite", "generated", True)


def test_the_ratio_is_the_exact_decimal():
    resolved = load_config(EXAMPLES / "minimal.yaml").resolved
    for written, exact in ((0.29, Fraction(29, 100)), (0.1, Fraction(1, 10)), (1, Fraction(1))):
        resolved["stage2_ab"]["schedule"]["b_ratio"] = written
        assert build_config(resolved).stage2_ab.schedule.b_ratio == exact


def test_the_rollout_section_is_at_hand():
    config = load_config(EXAMPLES / "every_key.yaml").config
    assert config.rollout_matching is config.custom.extra.rollout_matching
    assert config.rollout_matching.decode_batch_size == 4


def test_a_path_may_begin_at_home(monkeypatch):
    """YAML knows no shell: every path of a config, and one without such a home stays as it is."""
    resolved = load_config(EXAMPLES / "minimal.yaml").resolved
    monkeypatch.setenv("HOME", "/home/one")
    resolved["model"]["path"], resolved["data"]["train"] = "~/checkpoint", "~nobody-here/train.jsonl"
    config = build_config(resolved)
    assert config.model.path == Path("/home/one/checkpoint")
    assert config.data.train == Path("~nobody-here/train.jsonl")

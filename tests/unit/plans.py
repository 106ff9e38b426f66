"""Configs from which plans are made, with some values replaced."""

from dataclasses import replace

from ds_stage2ab.config.load import load_config
from ds_stage2ab.config.sections import Config
from tests.parts import ROOT

MINIMAL = load_config(ROOT / "tests" / "examples" / "valid" / "minimal.yaml").config


def config(section: str = "training", **changes: object) -> Config:
    """The minimal config with some values of one section replaced."""
    return replace(MINIMAL, **{section: replace(getattr(MINIMAL, section), **changes)})


def with_servers(**changes: object) -> Config:
    """The minimal config with rollouts by servers, 4 at once on a replica."""
    changes = {"rollout_backend": "vllm", "decode_batch_size": 4, **changes}
    matching = replace(MINIMAL.rollout_matching, **changes)
    return replace(
        MINIMAL, custom=replace(MINIMAL.custom, extra=replace(MINIMAL.custom.extra, rollout_matching=matching))
    )

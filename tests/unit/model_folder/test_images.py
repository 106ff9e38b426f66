"""Limits of config and checkpoint together; the tokens of an image are held in tests/unit/preflight/test_lengths.py."""

import re

import pytest
from transformers import Qwen2VLImageProcessorPil

from ds_stage2ab.errors import EXIT_CONFIG, ConfigError
from ds_stage2ab.model_folder.images import (
    DEFAULT_SIZE,
    DEFAULTS,
    ImageLimits,
    image_limits,
    processor_settings,
    too_thin,
)

SETTINGS = processor_settings({}, {"patch_size": 8, "size": {"shortest_edge": 1024, "longest_edge": 65_536}})


@pytest.mark.parametrize(
    "asked", [{"min_pixels": 70_000, "max_pixels": None}, {"min_pixels": None, "max_pixels": 1000}]
)
def test_a_limit_that_crosses_the_checkpoints_other_one_is_refused(asked):
    with pytest.raises(ConfigError) as caught:
        image_limits(SETTINGS, **asked)
    ((key, value),) = ((key, value) for key, value in asked.items() if value is not None)
    assert (caught.value.code, caught.value.where) == (EXIT_CONFIG, f"data.{key}")
    # the remedy, followed
    other, number = re.search(r"set data\.(\w+) to (\d+)", caught.value.fix).groups()
    followed = image_limits(SETTINGS, **{**asked, other: int(number)})
    assert followed == ImageLimits(side=16, min_pixels=value, max_pixels=value)
    assert image_limits(SETTINGS, min_pixels=None, max_pixels=None).max_pixels == 65_536


def test_the_defaults_are_the_librarys():
    own = Qwen2VLImageProcessorPil().to_dict()
    assert {key: list(own[key]) if "image" in key else own[key] for key in DEFAULTS} == dict(DEFAULTS)
    assert dict(Qwen2VLImageProcessorPil.size) == DEFAULT_SIZE


@pytest.mark.parametrize("size", [(1, 200), (1, 201), (2, 400), (401, 2), (600, 2), (3, 600), (64, 48)])
def test_the_image_processor_refuses_what_is_too_thin(size):
    width, height = size
    processor = Qwen2VLImageProcessorPil(patch_size=8, size={"shortest_edge": 1024, "longest_edge": 65_536})
    try:
        processor.get_number_of_image_patches(height, width)
        taken = True
    except ValueError:
        taken = False
    assert taken == (not too_thin(size))

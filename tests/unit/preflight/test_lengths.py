"""Tokens of images as the real image processor counts them; room for prompt and answer by hand."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2VLImageProcessorPil

from ds_stage2ab.config.load import load_config
from ds_stage2ab.errors import ConfigError, DataError
from ds_stage2ab.model_folder.images import ImageLimits, image_limits, image_tokens
from ds_stage2ab.model_folder.read import read_folder
from ds_stage2ab.preflight.lengths import image_sizes, share_of_room
from tests.parts import ROOT

STAGE1 = ROOT / "assets" / "quickstart" / "stage1"
DATA = load_config(ROOT / "configs" / "quickstart" / "ab_mixed.yaml").config.data
LIMITS = ImageLimits(side=32, min_pixels=65_536, max_pixels=1_048_576)
PROCESSOR = Qwen2VLImageProcessorPil(
    patch_size=16, merge_size=2, size={"shortest_edge": 65_536, "longest_edge": 1_048_576}
)


@given(st.integers(8, 4000), st.integers(8, 4000))
def test_an_image_has_the_tokens_of_the_real_processor(width, height):
    if max(width, height) > 150 * min(width, height):
        return  # the processor refuses such an image
    expected = PROCESSOR.get_number_of_image_patches(height, width) // 4
    assert image_tokens((width, height), LIMITS) == expected


def test_an_image_by_hand():
    # 640 x 480 is 20 x 15 tokens; 64 x 64 grows to 65,536 pixels, 8 x 8; 2048 x 2048 shrinks to 1,048,576, 32 x 32
    assert [image_tokens(size, LIMITS) for size in ((640, 480), (64, 64), (2048, 2048))] == [300, 64, 1024]
    assert LIMITS.most_tokens == 1024


def read_image_limits(folder, data):
    settings = read_folder(folder).image_settings
    return image_limits(settings, min_pixels=data.min_pixels, max_pixels=data.max_pixels)


def test_the_limits_are_the_checkpoints_and_the_config_comes_first():
    # patches of 8 pixels, 2 x 2 of them to a token
    assert read_image_limits(STAGE1, DATA) == ImageLimits(side=16, min_pixels=1024, max_pixels=65_536)
    asked = replace(DATA, min_pixels=2048, max_pixels=4096)
    assert read_image_limits(STAGE1, asked) == ImageLimits(side=16, min_pixels=2048, max_pixels=4096)


@pytest.mark.parametrize(
    "text", [None, "{", "[]", '{"size": {"shortest_edge": null}}', '{"size": {}, "patch_size": 8, "merge_size": 2}']
)
def test_without_a_preprocessor_the_limits_are_not_known(tmp_path, text):
    if text is not None:
        (tmp_path / "preprocessor_config.json").write_text(text)
    assert read_image_limits(tmp_path, DATA) is None


def jsonl(folder: Path, *lines: str) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_each_line_names_a_size(tmp_path):
    records = [{"images": ["a.png"], "width": width, "height": 20, "objects": []} for width in (10, 30)]
    assert image_sizes(jsonl(tmp_path, *map(json.dumps, records))) == [(10, 20), (30, 20)]
    assert image_sizes(tmp_path / "elsewhere.jsonl") is None


@pytest.mark.parametrize("line", ["", "{", "[1]", "7", '{"width": 3}', '{"width": "3", "height": 4}', "[" * 100_000])
def test_a_line_without_a_size_is_named(tmp_path, line):
    path = jsonl(tmp_path, '{"width": 3, "height": 4}', line)
    with pytest.raises(DataError, match="no record with the width and height") as raised:
        image_sizes(path)
    assert raised.value.where == f"{path}:2"


def test_an_empty_file_and_a_folder_are_no_data(tmp_path):
    with pytest.raises(DataError, match="is empty"):
        image_sizes(jsonl(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(DataError, match="cannot be read: it is no regular file"):
            image_sizes(path)


def room(answered, *, limits=LIMITS, answer=100, cap=1000, position_limit=None):
    return share_of_room(answered, limits, answer=answer, cap=cap, position_limit=position_limit)


def test_what_is_left_is_what_image_and_answer_do_not_take():
    # 640 x 480 has 300 tokens, 64 x 64 has 64: 1000 - 100 - 300 = 600
    lengths = room([[(640, 480), (64, 64)], [(64, 64)]])
    assert (lengths.image, lengths.is_counted, lengths.left_for_words) == (300, True, 600)


def test_a_set_that_is_not_here_leaves_the_bound_of_the_pixels():
    lengths = room([[(640, 480)], None])
    assert (lengths.image, lengths.is_counted, lengths.left_for_words) == (1024, False, 1000 - 100 - 1024)


def test_without_limits_no_image_is_counted():
    lengths = room([[(640, 480)]], limits=None)
    assert (lengths.image, lengths.is_counted, lengths.left_for_words) == (None, False, 900)


def test_the_prompt_has_a_word_at_least():
    # 300 of the image and 699 new ones leave one of 1,000; one more leaves none
    assert room([[(640, 480)]], answer=699).left_for_words == 1
    with pytest.raises(ConfigError) as raised:
        room([[(640, 480)]], answer=700)
    assert raised.value.why == (
        "700 new tokens do not fit beside the largest image, which has 300, and a prompt:"
        " training.global_max_length is 1000"
    )
    assert raised.value.where == "custom.extra.rollout_matching.max_new_tokens"
    assert raised.value.fix == (
        "set custom.extra.rollout_matching.max_new_tokens well below 700, or set data.max_pixels lower"
    )


def test_an_image_that_takes_all_the_room_is_to_be_smaller():
    with pytest.raises(ConfigError) as raised:
        room([[(640, 480)]], cap=300, answer=10)
    assert raised.value.fix == "set data.max_pixels lower"


def test_a_set_that_is_here_is_judged_though_another_is_not():
    with pytest.raises(ConfigError):
        room([None, [(640, 480)]], answer=700)


def test_the_models_positions_limit_too():
    assert room([[(64, 64)]], position_limit=500).limit == 500
    with pytest.raises(ConfigError, match="the model's position limit is 100"):
        room([None], position_limit=100)


def test_what_nobody_answers_breaks_no_rule():
    assert room([], answer=999, position_limit=500).left_for_words < 0

"""A prompt and a target become one segment: hand-made ids on a real sample."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ds_stage2ab.carriers import Target
from ds_stage2ab.channels.segment import make_segment
from ds_stage2ab.engine.build import position_index
from ds_stage2ab.errors import EXIT_DATA, DataError
from tests.unit.parts import load_bench

TARGET = Target(
    ids=np.array([900, 901, 902, 903, 904, 2]),
    weights=np.array([0.0, 0.25, 0.0, 3.0, 1.0, 1.0], dtype=np.float32),
    is_desc=np.array([False, True, False, False, False, False]),
    slots=np.array([2, 3, 4, 0]),
    bins=np.array([7, 0, 999, 500]),
    score_slots=np.array([4]),
    score_bins=np.array([800]),
    num_go_on=1,
    num_stop=1,
    seam_fallback=False,
)
PLACES = ("slots", "bins", "score_slots", "score_bins")
NO_PLACES = np.array([], dtype=np.int64)
SILENT = replace(TARGET, weights=np.zeros(6, dtype=np.float32), **dict.fromkeys(PLACES, NO_PLACES))


@pytest.fixture(scope="module")
def bench(quickstart):
    return load_bench(quickstart, num_samples=2)


def made(bench, target=TARGET, **changes):
    settings = {"max_length": 4096, "remedy": "data.max_pixels"}
    settings |= {"terms": {"rollout/tokens": (6.0, 1.0)}} | changes
    return make_segment(bench.samples[1], target, position_index(bench.model), **settings)


def test_the_prompt_stands_before_the_target(bench):
    sample, segment = bench.samples[1], made(bench)
    assert segment.input_ids.dtype == torch.long
    assert tuple(segment.input_ids.tolist()) == (*sample.prompt_ids, 900, 901, 902, 903, 904, 2)


def test_the_prompt_has_weight_0_and_the_target_its_own(bench):
    prompt, segment = len(bench.samples[1].prompt_ids), made(bench)
    assert segment.weights.dtype == torch.float32 and segment.is_desc.dtype == torch.bool
    assert segment.weights.tolist() == [0.0] * prompt + [0.0, 0.25, 0.0, 3.0, 1.0, 1.0]
    assert segment.is_desc.nonzero().flatten().tolist() == [prompt + 1]
    assert len(segment.is_desc) == prompt + 6


def test_slots_are_counted_from_the_prompts_first_token_and_bins_are_as_they_are(bench):
    prompt, segment = len(bench.samples[1].prompt_ids), made(bench)
    assert segment.slots.tolist() == [prompt + 2, prompt + 3, prompt + 4, prompt]
    assert segment.bins.tolist() == [7, 0, 999, 500]
    assert segment.input_ids[segment.slots].tolist() == [902, 903, 904, 900]
    assert (segment.score_slots.tolist(), segment.score_bins.tolist()) == ([prompt + 4], [800])


def test_a_target_without_slots_has_empty_whole_numbers(bench):
    segment = made(bench, SILENT)
    assert segment.slots.shape == segment.bins.shape == (0,)
    assert segment.slots.dtype == segment.bins.dtype == torch.long
    assert not segment.weights.any()


def test_positions_are_those_of_the_whole_segment(bench):
    sample, segment = bench.samples[1], made(bench)
    assert segment.position_ids.shape == (4, len(sample.prompt_ids) + 6)
    assert segment.position_ids[0].tolist() == list(range(len(segment.input_ids)))
    # behind an image the position goes on from the larger side of its grid: fewer positions than tokens
    columns = segment.position_ids[1:, -6:]
    assert torch.equal(columns[0], columns[1]) and torch.equal(columns[0], columns[2])
    assert columns[0].diff().tolist() == [1] * 5
    assert columns[0, -1] < len(segment.input_ids) - 1


def test_the_rest_is_the_samples_and_its_terms(bench):
    sample, segment = bench.samples[1], made(bench)
    assert (segment.sample_id, segment.draw) == ("train-000001", 1)
    assert segment.vision is sample.vision
    assert segment.terms == {"rollout/tokens": (6.0, 1.0)}


def test_a_segment_may_be_as_long_as_the_cap_and_no_longer(bench):
    length = len(bench.samples[1].prompt_ids) + 6
    assert len(made(bench, max_length=length).input_ids) == length
    with pytest.raises(DataError) as caught:
        made(bench, max_length=length - 1)
    assert (caught.value.code, caught.value.where) == (EXIT_DATA, "train-000001")
    assert caught.value.why == (
        f"prompt and answer are {length} tokens long, training.global_max_length is {length - 1}"
    )
    assert caught.value.fix == (
        f"set training.global_max_length to {length} or more, or data.max_pixels lower,"
        " or data.on_overlong to skip such samples"
    )

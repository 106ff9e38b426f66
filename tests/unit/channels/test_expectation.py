"""Channel A on real samples of the tiny model: what is supervised, where, and with which weight."""

from dataclasses import replace

import pytest
import torch

from ds_stage2ab.carriers import Truth
from ds_stage2ab.channels.expectation import Expectation
from ds_stage2ab.codec.text import get_codec
from ds_stage2ab.engine.build import position_index
from ds_stage2ab.errors import EXIT_DATA, ConfigError, DataError
from tests.unit.parts import load_bench

CAT_AND_DOG = (Truth(desc="cat", box=(1, 20, 300, 999)), Truth(desc="a big dog", box=(0, 5, 7, 8)))


@pytest.fixture(scope="module")
def bench(quickstart):
    return load_bench(quickstart, num_samples=4)


@pytest.fixture(scope="module")
def one(bench):
    """The bench with a single sample: the first image, and objects with known text."""
    return replace(bench, samples=[replace(bench.samples[0], objects=CAT_AND_DOG)])


def pieces_and_weights(one, segment):
    """[(text of a token, its weight)] behind the prompt."""
    start = len(one.samples[0].prompt_ids)
    texts = [one.vocabulary.written(token).decode() for token in segment.input_ids[start:].tolist()]
    return list(zip(texts, segment.weights[start:].tolist(), strict=True))


def test_ids_are_the_prompt_the_answer_and_the_end_of_turn(one):
    segment = one.segments()[0]
    prompt = one.samples[0].prompt_ids
    ids = segment.input_ids.tolist()
    assert tuple(ids[: len(prompt)]) == prompt
    assert ids[-1] == one.vocabulary.stop_id
    assert one.vocabulary.written_all(ids[len(prompt) : -1]).decode() == (
        '{"objects": [{"desc": "cat", "bbox_2d": [<|coord_1|>, <|coord_20|>, <|coord_300|>, <|coord_999|>]}, '
        '{"desc": "a big dog", "bbox_2d": [<|coord_0|>, <|coord_5|>, <|coord_7|>, <|coord_8|>]}]}'
    )


def test_the_table_of_weights(one):
    segment = one.segments(desc_ce_weight=0.25)[0]
    assert not segment.weights[: len(one.samples[0].prompt_ids)].any()
    by_weight = dict.fromkeys((0.0, 0.25, 1.0), "")
    for text, weight in pieces_and_weights(one, segment):
        by_weight[weight] += text
    coordinates = "".join(f"<|coord_{k}|>" for k in (1, 20, 300, 999, 0, 5, 7, 8))
    assert by_weight[0.0] == coordinates
    assert by_weight[0.25] == "cata big dog"
    assert by_weight[1.0] == ('{"objects": [{"desc": "", "bbox_2d": [, , , ]}, {"desc": "", "bbox_2d": [, , , ]}]}')
    assert segment.weights[-1] == 1.0  # the end of turn


def test_description_tokens_are_marked(one):
    segment = one.segments()[0]
    marked = segment.input_ids[segment.is_desc].tolist()
    assert one.vocabulary.written_all(marked).decode() == "cata big dog"


def test_slots_and_bins_are_those_of_the_objects(one):
    segment = one.segments()[0]
    assert segment.bins.tolist() == [1, 20, 300, 999, 0, 5, 7, 8]
    coordinate_ids = torch.tensor(one.vocabulary.coordinate_ids)
    assert torch.equal(segment.input_ids[segment.slots], coordinate_ids[segment.bins])


def test_no_objects_leave_structure_alone(one):
    empty = replace(one, samples=[replace(one.samples[0], objects=())])
    segment = empty.segments()[0]
    assert segment.slots.shape == segment.bins.shape == (0,)
    assert segment.slots.dtype == segment.bins.dtype == torch.long
    supervised = segment.input_ids[segment.weights == 1].tolist()
    assert empty.vocabulary.written_all(supervised).decode() == '{"objects": []}'
    assert supervised[-1] == empty.vocabulary.stop_id


def test_positions_are_the_models_own(bench):
    for segment in bench.segments():
        ids = segment.input_ids[None]
        types = (ids == bench.vocabulary.image_id).int()
        expected, _ = bench.model.model.get_rope_index(
            ids, mm_token_type_ids=types, image_grid_thw=segment.vision.image_grid_thw
        )
        assert segment.position_ids[0].tolist() == list(range(len(segment.input_ids)))
        assert torch.equal(segment.position_ids[1:], expected[:, 0])


def test_segments_keep_order_and_names(bench):
    segments = bench.segments()
    assert [segment.sample_id for segment in segments] == [sample.id for sample in bench.samples]
    assert [segment.draw for segment in segments] == [0, 1, 2, 3]


def test_a_sample_that_is_too_long_is_named_with_the_key(one):
    length = len(one.segments()[0].input_ids)
    assert len(one.segments(max_length=length)) == 1
    with pytest.raises(DataError) as caught:
        one.segments(max_length=length - 1)
    assert caught.value.code == EXIT_DATA
    assert caught.value.where == one.samples[0].id == "train-000000"
    assert caught.value.why == (
        f"prompt and answer are {length} tokens long, training.global_max_length is {length - 1}"
    )
    assert f"training.global_max_length to {length} or more" in caught.value.fix


def test_a_cap_below_the_dummy_sample_is_a_fault_of_the_config(bench):
    """It stands in no data set, so there is no sample to name and none to skip."""
    short = Expectation(
        get_codec("array"),
        bench.vocabulary,
        position_index(bench.model),
        num_passes=1,
        desc_ce_weight=1.0,
        num_noise=0,
        seed=0,
        max_length=30,
        skip_overlong=True,
    )
    with pytest.raises(ConfigError) as caught:
        short.dummy_segment(bench.encoder.blank([]))
    assert caught.value.where == "training.global_max_length"
    assert caught.value.why.startswith("not even a small white image with one object fits: prompt and answer are ")
    assert "skip" not in caught.value.fix and "(blank)" not in str(caught.value)

"""The three rules by hand, and the guard of real rollouts."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from ds_stage2ab.engine.build import position_index
from ds_stage2ab.rollout.hf import HfBackend
from ds_stage2ab.rollout.repeat_guard import GuardParams, IncrementalDetector, first_repeat, repeats
from tests.unit.parts import NO_GUARD, greedy_sampling, load_bench

COORDINATES = torch.tensor([100, 101, 102])


def broken(rows, **limits):
    generated = torch.tensor(rows)
    return repeats(generated, COORDINATES, replace(NO_GUARD, **limits), 4).tolist()


def test_a_token_in_a_row():
    rows = [[1, 7, 7, 7], [7, 7, 7, 1], [7, 7, 1, 7], [7, 7, 7, 7]]
    assert broken(rows, max_token_run=3) == [True, False, False, True]
    assert broken(rows, max_token_run=4) == [False, False, False, True]
    assert broken(rows, max_token_run=5) == [False] * 4  # longer than the answers


def test_a_repeated_sequence():
    # the last two tokens: 1 2 stand three times, 2 1 twice, 5 6 once
    rows = [[1, 2, 1, 2, 1, 2], [0, 2, 1, 0, 2, 1], [1, 2, 3, 4, 5, 6]]
    assert broken(rows, ngram_size=2, max_ngram_repeats=2) == [True, True, False]
    assert broken(rows, ngram_size=2, max_ngram_repeats=3) == [True, False, False]
    assert broken(rows, ngram_size=6, max_ngram_repeats=2) == [False] * 3
    assert broken([[7, 7, 7]], ngram_size=2, max_ngram_repeats=2) == [True]  # overlapping ones count


def test_too_many_objects():
    # five coordinates are more than one object's four
    rows = [[100, 101, 102, 100, 1, 2], [100, 101, 102, 100, 1, 101], [1, 2, 3, 4, 5, 6]]
    assert broken(rows, max_objects=1) == [False, True, False]
    assert broken(rows, max_objects=2) == [False] * 3


def test_without_limits_nothing_is_broken():
    assert broken([[7] * 50]) == [False]
    assert broken([[], []], max_token_run=2, ngram_size=2, max_ngram_repeats=2, max_objects=1) == [False, False]


LIMITS = st.builds(
    lambda run, ngram, objects: {
        "max_token_run": run,
        "ngram_size": ngram and ngram[0],
        "max_ngram_repeats": ngram and ngram[1],
        "max_objects": objects,
    },
    st.none() | st.integers(2, 4),
    st.none() | st.tuples(st.integers(2, 4), st.integers(2, 3)),
    st.none() | st.integers(1, 3),
)
ANSWERS = st.lists(st.sampled_from([1, 2, *COORDINATES[:2].tolist()]), max_size=24)


@given(ids=ANSWERS, limits=LIMITS, ends=st.lists(st.integers(0, 24), max_size=4))
@example(ids=[7, 7, 7], limits={"ngram_size": 2, "max_ngram_repeats": 2}, ends=[])
def test_token_by_token_the_rules_are_those_of_whole_rows(ids, limits, ends):
    """However many tokens are read at a time: the first prefix that breaks a rule is where the watch stops."""
    section = replace(NO_GUARD, **limits)
    broken_at = [end for end in range(1, len(ids) + 1) if broken([ids[:end]], **limits) == [True]]
    watch, places = IncrementalDetector(section, set(COORDINATES.tolist()), 4), sorted({*ends, len(ids)})
    for first, last in zip([0, *places], places, strict=False):
        watch.read(ids[first:last])
    assert watch.is_broken == bool(broken_at)
    assert watch.ids == ids[: broken_at[0]] if broken_at else watch.ids == ids
    assert first_repeat(ids, set(COORDINATES.tolist()), section, 4) == (broken_at[0] if broken_at else None)


@given(limits=LIMITS)
def test_orders_arrive_as_they_were_sent(limits):
    """By way of JSON, between the arguments of others; numbers and lists of numbers are all that vLLM lets through."""
    params = GuardParams(limits=replace(NO_GUARD, **limits), stop_id=0, coordinate_ids=(5, 3), per_object=5)
    sent = json.loads(json.dumps({"session_id": "a", **params.arguments()}))
    assert {type(value) for value in params.arguments().values()} <= {int, list}
    assert GuardParams.read(sent) == params


@pytest.mark.parametrize("arguments", [None, {}, {"session_id": "a"}])
def test_a_request_without_orders(arguments):
    assert GuardParams.read(arguments) is None


@pytest.fixture(scope="module")
def bench(quickstart):
    loaded = load_bench(quickstart, num_samples=5)
    loaded.model.lm_head.weight = nn.Parameter(loaded.model.lm_head.weight.detach().clone())
    return loaded


def rollouts(bench, limits, decode_batch_size=4, **changes):
    backend = HfBackend(
        lambda: nullcontext(bench.model),
        bench.vocabulary,
        position_index(bench.model),
        decode_batch_size=decode_batch_size,
        start_id="start",
        seed=0,
    )
    sampling = greedy_sampling(max_new_tokens=12, repeat_terminate=replace(NO_GUARD, **limits), **changes)
    with backend.current_weights(0):
        return backend.generate(bench.samples, sampling, finished_steps=0)


def test_a_rollout_is_ended_where_it_repeats(bench):
    """A model of random weights repeats itself: each answer is cut exactly where the rule is first broken."""
    free = rollouts(bench, {})
    assert {rollout.finish for rollout in free} == {"length"}
    limits = {"max_token_run": 3}
    ended = rollouts(bench, limits)
    assert "repeat" in {rollout.finish for rollout in ended}
    for whole, cut in zip(free, ended, strict=True):
        rows = [list(whole.response_ids[: end + 1]) for end in range(len(whole.response_ids))]
        first = next((len(row) for row in rows if broken([row], **limits) == [True]), None)
        if first is None or first == len(whole.response_ids):  # at the limit the answer ends in any case
            assert (cut.response_ids, cut.finish) == (whole.response_ids, "length")
        else:
            assert (cut.response_ids, cut.finish) == (whole.response_ids[:first], "repeat")


def test_the_guard_does_not_depend_on_the_decode_batch(bench):
    limits = {"ngram_size": 2, "max_ngram_repeats": 2}
    together, alone = rollouts(bench, limits, decode_batch_size=5), rollouts(bench, limits, decode_batch_size=1)
    assert [(one.response_ids, one.finish) for one in together] == [(one.response_ids, one.finish) for one in alone]


def test_the_guard_acts_on_draws_too(bench):
    """Whatever the noise would lift over the stop."""
    ended = rollouts(bench, {"max_objects": 1}, temperature=1.0)
    for rollout in ended:
        numbers = [token in bench.vocabulary.coordinate_bins for token in rollout.response_ids]
        assert sum(numbers) <= 5
        assert rollout.finish != "repeat" or sum(numbers) == 5

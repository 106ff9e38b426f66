"""Rollouts of the real tiny model: the same tokens for every decode batch, and nothing taken from the checkpoint."""

import hashlib
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import GenerationConfig

from ds_stage2ab.engine.build import position_index
from ds_stage2ab.errors import TrainingFault
from ds_stage2ab.rollout.hf import HfBackend
from tests.unit.parts import greedy_sampling, load_bench

MAX_NEW_TOKENS = 12
SAMPLING = greedy_sampling(max_new_tokens=MAX_NEW_TOKENS)


@pytest.fixture(scope="module")
def bench(quickstart):
    """Seven samples whose prompts have different lengths, and a head of its own that tests may turn."""
    loaded = load_bench(quickstart, num_samples=7)
    assert len({len(sample.prompt_ids) for sample in loaded.samples}) > 2
    loaded.model.lm_head.weight = nn.Parameter(loaded.model.lm_head.weight.detach().clone())
    return loaded


@pytest.fixture(scope="module")
def greedy(bench):
    """The first tokens of each sample without a stop."""
    return [one_at_a_time(bench, sample) for sample in bench.samples]


@pytest.fixture
def head(bench):
    """The head's weights [V, D]; restored afterwards."""
    before = bench.model.lm_head.weight.detach().clone()
    yield bench.model.lm_head.weight.data
    bench.model.lm_head.weight.data.copy_(before)


def one_at_a_time(bench, sample):
    """Greedy tokens of one prompt by a loop of plain forwards: no cache, no padding, no `generate`."""
    ids, banned = torch.tensor(sample.prompt_ids), list(bench.vocabulary.vision_ids)
    for _ in range(MAX_NEW_TOKENS):
        with torch.no_grad():
            logits = bench.model(
                input_ids=ids[None],
                mm_token_type_ids=(ids == bench.vocabulary.image_id).int()[None],
                pixel_values=sample.vision.pixel_values,
                image_grid_thw=sample.vision.image_grid_thw,
                use_cache=False,
            ).logits[0, -1]
        logits[banned] = -torch.inf
        ids = torch.cat([ids, logits.argmax()[None]])
        if ids[-1] == bench.vocabulary.stop_id:
            break
    return tuple(ids[len(sample.prompt_ids) :].tolist())


def rollouts(bench, *, decode_batch_size=3, sampling=SAMPLING, samples=None):
    settings = {"decode_batch_size": decode_batch_size, "start_id": "start", "seed": 3}
    backend = HfBackend(lambda: nullcontext(bench.model), bench.vocabulary, position_index(bench.model), **settings)
    with backend.current_weights(0):
        return backend.generate(bench.samples if samples is None else samples, sampling, finished_steps=5)


def responses(bench, **settings):
    return [rollout.response_ids for rollout in rollouts(bench, **settings)]


def win(head, winner, loser, factor=1.0001):
    """From now on `winner` stands wherever `loser` would have been written: its (positive) logit times the factor."""
    head[winner] = factor * head[loser]


@pytest.mark.parametrize("decode_batch_size", [1, 3, 8])
def test_any_decode_batch_writes_what_one_prompt_alone_writes(bench, greedy, decode_batch_size):
    assert responses(bench, decode_batch_size=decode_batch_size) == greedy
    assert len(set(greedy)) > 1


def test_rollouts_are_in_the_order_of_the_requests(bench, greedy):
    order = [4, 0, 6, 2, 1]
    found = rollouts(bench, samples=[bench.samples[index] for index in order])
    assert [rollout.response_ids for rollout in found] == [greedy[index] for index in order]
    assert [rollout.draw for rollout in found] == order
    assert [rollout.sample_id for rollout in found] == [bench.samples[index].id for index in order]
    assert [rollout.prompt_ids for rollout in found] == [bench.samples[index].prompt_ids for index in order]


def test_no_more_rows_than_the_decode_batch_are_alive(bench):
    rows = []
    hook = bench.model.model.language_model.register_forward_pre_hook(
        lambda module, arguments, named: rows.append(named["slots"].num_rows), with_kwargs=True
    )
    try:
        rollouts(bench, decode_batch_size=3)
    finally:
        hook.remove()
    # 7 = 3 + 3 + 1 answers of equal length: a pass for each token
    assert rows == [3] * 2 * MAX_NEW_TOKENS + [1] * MAX_NEW_TOKENS


def test_every_rollout_carries_the_weights_version(bench):
    assert {rollout.weight_version for rollout in rollouts(bench)} == {"start/5"}
    assert {rollout.source for rollout in rollouts(bench)} == {"hf"}


def test_every_rollout_carries_a_seed_of_its_own(bench):
    found = rollouts(bench, samples=bench.samples[4:])
    digest = hashlib.blake2b(b"3/4/train-000004").digest()  # training.seed, draw, sample id
    assert found[0].seed == int.from_bytes(digest[:8], "big") // 2
    assert len({rollout.seed for rollout in found}) == len(found)


def test_the_stop_ends_a_rollout_and_is_removed(bench, greedy, head):
    stop = bench.vocabulary.stop_id
    # the stop takes the place of a token that sample 0 writes and another sample does not
    win(head, stop, next(token for token in greedy[0] if any(token not in other for other in greedy)))
    found = rollouts(bench)
    for rollout, sample in zip(found, bench.samples, strict=True):
        expected = one_at_a_time(bench, sample)
        finish = "stop" if expected[-1] == stop else "length"
        assert (rollout.response_ids, rollout.finish) == (expected[:-1] if finish == "stop" else expected, finish)
        assert stop not in rollout.response_ids
    assert {rollout.finish for rollout in found} == {"stop", "length"}


def test_rows_that_stop_at_different_places_do_not_disturb_each_other(bench, greedy, head):
    late = next(token for tokens in greedy for token in reversed(tokens) if tokens.index(token) > 0)
    win(head, bench.vocabulary.stop_id, late)
    alone = responses(bench, decode_batch_size=1)
    assert len({len(response) for response in alone}) > 1
    assert responses(bench, decode_batch_size=8) == alone


def test_a_stop_as_the_last_token_allowed_is_a_stop(bench, greedy, head):
    place = next(place for place, tokens in enumerate(greedy) if len(set(tokens)) > 1)
    win(head, bench.vocabulary.stop_id, next(token for token in greedy[place] if token != greedy[place][0]))
    whole = rollouts(bench)[place]
    assert whole.finish == "stop" and whole.response_ids
    needed = len(whole.response_ids) + 1  # the stop is a token too
    finishes = [
        rollouts(bench, sampling=replace(SAMPLING, max_new_tokens=number))[place].finish
        for number in (needed, needed - 1)
    ]
    assert finishes == ["stop", "length"]


def test_an_empty_answer_is_a_legal_rollout(bench, greedy, head):
    win(head, bench.vocabulary.stop_id, greedy[0][0])
    first = rollouts(bench)[0]
    assert (first.response_ids, first.finish) == ((), "stop")


def test_vision_tokens_are_never_written(bench, greedy, head):
    for token in bench.vocabulary.vision_ids:
        win(head, token, greedy[0][0], factor=2.0)
    found = responses(bench)
    assert found == greedy
    assert not set(bench.vocabulary.vision_ids) & {token for response in found for token in response}


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_from_before_is_restored(bench, training):
    bench.model.train(training)
    rollouts(bench)
    assert bench.model.training is training
    sample = bench.samples[0]
    few = replace(sample.vision, pixel_values=sample.vision.pixel_values[:-4])  # fewer patches than the grid says
    own_config = bench.model.generation_config
    with pytest.raises(RuntimeError):
        rollouts(bench, samples=[replace(sample, vision=few)])
    assert bench.model.training is training
    assert bench.model.generation_config is own_config
    bench.model.eval()


def test_generation_is_in_eval_mode_and_leaves_no_graph(bench):
    seen = []
    hook = bench.model.lm_head.register_forward_hook(
        lambda module, arguments, output: seen.append((module.training, output.requires_grad))
    )
    bench.model.train()
    try:
        rollouts(bench)
    finally:
        hook.remove()
        bench.model.eval()
    assert set(seen) == {(False, False)}


# What a checkpoint's generation_config.json may hold; each would change greedy tokens if it leaked in.
LEAKS = {
    "sampling": {"do_sample": True, "temperature": 5.0, "top_k": 3, "top_p": 0.5},
    "repetition_penalty": {"repetition_penalty": 1.5},
    "max_new_tokens": {"max_new_tokens": 2},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "bad_words_ids": {},
    "begin_suppress_tokens": {},
    "forced_eos_token_id": {},
}


@pytest.mark.parametrize("name", LEAKS)
def test_nothing_is_inherited_from_the_checkpoint(bench, greedy, name):
    first = greedy[0][0]
    computed = {
        "bad_words_ids": [[first]],
        "begin_suppress_tokens": [first],
        "forced_eos_token_id": bench.vocabulary.stop_id,
    }
    theirs = GenerationConfig(**(LEAKS[name] or {name: computed[name]}))
    before, bench.model.generation_config = bench.model.generation_config, theirs
    try:
        assert responses(bench) == greedy
        assert bench.model.generation_config is theirs
    finally:
        bench.model.generation_config = before


def test_every_field_of_sampling_is_told_as_it_acts(bench):
    asked = greedy_sampling(temperature=0.7, top_p=0.9, top_k=12, repetition_penalty=1.1, max_new_tokens=34)
    settings = {"decode_batch_size": 1, "start_id": "start", "seed": 3}
    told = HfBackend(nullcontext, bench.vocabulary, position_index(bench.model), **settings).resolved(asked)
    assert (told["temperature"], told["top_p"], told["top_k"]) == (0.7, 0.9, 12)
    assert (told["repetition_penalty"], told["max_new_tokens"]) == (1.1, 34)
    assert told["stop_ids"] == [bench.vocabulary.stop_id]
    assert set(told["forbidden_ids"]) == set(bench.vocabulary.vision_ids)


def test_the_repetition_penalty_is_applied_whatever_stands_in_the_padding(bench, greedy):
    sampling = replace(SAMPLING, repetition_penalty=1.5)
    alone = responses(bench, sampling=sampling, decode_batch_size=1)
    assert alone != greedy
    assert responses(bench, sampling=sampling, decode_batch_size=8) == alone


SAMPLED = replace(SAMPLING, temperature=1.0)


def test_a_draw_does_not_depend_on_the_decode_batch(bench, greedy):
    alone = responses(bench, sampling=SAMPLED, decode_batch_size=1)
    assert alone != greedy
    for decode_batch_size in (3, 8):
        assert responses(bench, sampling=SAMPLED, decode_batch_size=decode_batch_size) == alone
    assert responses(bench, sampling=SAMPLED, samples=bench.samples[::-1]) == alone[::-1]


def test_another_draw_of_a_sample_is_another_answer(bench):
    again = [replace(sample, draw=sample.draw + 100) for sample in bench.samples]
    assert responses(bench, sampling=SAMPLED, samples=again) != responses(bench, sampling=SAMPLED)


def test_further_rollouts_of_a_sample_are_other_answers_with_other_seeds(bench):
    """The first is the request that it would be alone."""
    (alone,) = rollouts(bench, sampling=SAMPLED, samples=bench.samples[4:5])
    several = [replace(bench.samples[4], index=index) for index in range(4)]
    found = rollouts(bench, sampling=SAMPLED, samples=several)
    assert (found[0].seed, found[0].response_ids) == (alone.seed, alone.response_ids)
    digest = hashlib.blake2b(b"3/4.3/train-000004").digest()  # training.seed, draw and index, sample id
    assert found[3].seed == int.from_bytes(digest[:8], "big") // 2
    assert [one.index for one in found] == [0, 1, 2, 3]
    assert len({one.seed for one in found}) == 4 and len({one.response_ids for one in found}) > 1


def test_top_one_is_greedy_at_any_temperature(bench, greedy):
    assert responses(bench, sampling=replace(SAMPLED, temperature=5.0, top_k=1)) == greedy
    assert responses(bench, sampling=replace(SAMPLED, temperature=5.0, top_p=1e-6)) == greedy


def test_vision_tokens_are_never_drawn(bench, greedy, head):
    for token in bench.vocabulary.vision_ids:
        win(head, token, greedy[0][0], factor=2.0)
    drawn = {token for response in responses(bench, sampling=SAMPLED) for token in response}
    assert drawn and not set(bench.vocabulary.vision_ids) & drawn


def test_no_requests_are_no_rollouts(bench):
    assert rollouts(bench, samples=[]) == []


def test_logits_that_are_not_finite_name_their_sample(bench):
    """One row's alone: those of its neighbours are sound."""
    vision = bench.samples[2].vision
    pixels = vision.pixel_values.clone()
    pixels[0, 0] = torch.nan
    sick = replace(bench.samples[2], id="the sick one", vision=replace(vision, pixel_values=pixels))
    with pytest.raises(TrainingFault, match="the sick one: the model's logits are not finite after 0 tokens") as caught:
        rollouts(bench, samples=[*bench.samples[:2], sick])
    assert "training.learning_rate" in caught.value.fix
    assert len(rollouts(bench, samples=bench.samples[:2])) == 2

"""What a server is asked, field by field, and what is taken from its answers."""

import base64
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest

from ds_stage2ab.engine.build import position_index
from ds_stage2ab.rollout.hf import HfBackend
from ds_stage2ab.rollout.repeat_guard import GuardParams, first_repeat
from ds_stage2ab.rollout.server.chat import Answer, Conversation, read_answer
from ds_stage2ab.rollout.server.http_client import ServerUnavailable
from tests.unit.parts import NO_GUARD, greedy_sampling, load_bench
from tests.unit.serving import drawn_from, fake_of, seeds_of

IMAGE = b"\x89PNG\r\n\x1a\n\x00\xff"
SAMPLE = SimpleNamespace(image=IMAGE, user_prompt="Detect.")  # what a request carries of a sample
CONVERSATION = Conversation(
    system_prompt=None,
    forbidden=("<|image_pad|>", "<|video_pad|>"),
    stop_id=7,
    coordinate_ids=(100, 101, 102),
)
SAMPLING = greedy_sampling(temperature=0.7, top_p=0.9, top_k=50, repetition_penalty=1.1, max_new_tokens=64)
USER = {
    "role": "user",
    "content": [
        {"type": "image_url", "image_url": {"url": "data:application/octet-stream;base64,iVBORw0KGgoA/w=="}},
        {"type": "text", "text": "Detect."},
    ],
}


# --- what is asked ----------------------------------------------------------------------------------------------


def test_every_field_of_a_request_is_said():
    assert CONVERSATION.request(SAMPLE, SAMPLING, 2**63 - 1) == {
        "model": "ds_stage2ab",
        "messages": [USER],
        "add_generation_prompt": True,
        "return_token_ids": True,
        "stream": False,
        "n": 1,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 50,
        "min_p": 0.0,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "length_penalty": 1.0,
        "max_completion_tokens": 64,
        "min_tokens": 0,
        "stop": [],
        "stop_token_ids": [7],
        "ignore_eos": True,
        "bad_words": ["<|image_pad|>", "<|video_pad|>"],
        "logit_bias": None,
        "use_beam_search": False,
        "skip_special_tokens": False,
        "logprobs": False,
        "seed": 2**63 - 1,
        "vllm_xargs": {"ds_stage2ab_drawn_here": 1},
    }


def test_switched_off_fields_are_said_too():
    body = CONVERSATION.request(SAMPLE, greedy_sampling(), 0)
    said = {name: body[name] for name in ("temperature", "top_p", "top_k", "repetition_penalty", "seed")}
    assert said == {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "seed": 0}
    assert "vllm_xargs" not in body


def test_the_rules_of_the_guard_are_said_where_there_are_any():
    """Rules that are off are left out, and coordinates go along only where they are counted."""
    greedy = replace(SAMPLING, temperature=0.0)
    by_run = replace(greedy, repeat_terminate=replace(NO_GUARD, max_token_run=3))
    asked, free = (CONVERSATION.request(SAMPLE, sampling, 0) for sampling in (by_run, greedy))
    told = {"ds_stage2ab_max_token_run": 3, "ds_stage2ab_stop_id": 7, "ds_stage2ab_per_object": 4}
    told |= {"ds_stage2ab_coordinate_ids": []}
    assert asked == {**free, "vllm_xargs": told}
    by_objects = replace(SAMPLING, repeat_terminate=replace(NO_GUARD, max_objects=20))
    assert CONVERSATION.request(SAMPLE, by_objects, 0)["vllm_xargs"] == {
        "ds_stage2ab_max_objects": 20,
        "ds_stage2ab_stop_id": 7,
        "ds_stage2ab_coordinate_ids": [100, 101, 102],
        "ds_stage2ab_per_object": 4,
        "ds_stage2ab_drawn_here": 1,
    }


def test_a_system_prompt_comes_first():
    system, user = replace(CONVERSATION, system_prompt="Answer in JSON.").messages(IMAGE, "Detect.")
    assert system == {"role": "system", "content": [{"type": "text", "text": "Answer in JSON."}]}
    assert user == USER


def test_the_image_is_its_file():
    (user,) = CONVERSATION.messages(IMAGE, "Detect.")
    address = user["content"][0]["image_url"]["url"]
    assert base64.b64decode(address.partition(",")[2]) == IMAGE


def test_a_probe_asks_for_so_many_tokens_and_how_probable_they_are():
    body = CONVERSATION.probe(SAMPLE, num_tokens=32, seed=20)
    assert body["messages"] == [USER] and body["return_token_ids"] is True
    wanted = {"max_completion_tokens": 32, "min_tokens": 32, "ignore_eos": True, "stop_token_ids": [], "seed": 20}
    drawn = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    told = {"logprobs": True, "top_logprobs": 0, "bad_words": ["<|image_pad|>", "<|video_pad|>"]}
    assert {**body, **wanted, **drawn, **told} == body


# --- what is answered -------------------------------------------------------------------------------------------


def reply_of(ids, finish="stop", **choice):
    return {"choices": [{"token_ids": ids, "finish_reason": finish, **choice}], "prompt_token_ids": [5, 6]}


def test_an_answer_is_taken_apart(vocabulary):
    logged = {"content": [{"logprob": -0.25}, {"logprob": -1}, {"logprob": 0.0}]}
    read = read_answer(reply_of([11, 12, vocabulary.stop_id], logprobs=logged), vocabulary)
    assert read == Answer(prompt_ids=(5, 6), response_ids=(11, 12), finish="stop", log_probs=(-0.25, -1, 0.0))
    assert read_answer(reply_of([11], "length", logprobs=None), vocabulary).log_probs == ()


@pytest.mark.parametrize(
    ("ids", "finish", "response"),
    [
        ("S", "stop", ""),  # the model had nothing to say
        ("", "stop", ""),
        ("abS", "stop", "ab"),
        ("aSS", "stop", "aS"),  # one stop ends an answer; what stands before it was written
        ("Sab", "stop", "Sab"),
        ("ab", "length", "ab"),
        ("aS", "length", "aS"),
    ],
)
def test_the_stop_is_removed_at_the_end_alone(vocabulary, ids: str, finish: str, response: str):
    letters = {"a": 11, "b": 12, "S": vocabulary.stop_id}
    read = read_answer(reply_of([letters[one] for one in ids], finish), vocabulary)
    assert (read.response_ids, read.finish) == (tuple(letters[one] for one in response), finish)


GOOD = {"token_ids": [11], "finish_reason": "stop"}
MALFORMED = {
    "nothing": (None, r"\$: None is not of type 'object'"),
    "a list": ([], r"\$: \[\] is not of type 'object'"),
    "no prompt": ({"choices": [GOOD]}, r"\$: 'prompt_token_ids' is a required property"),
    "prompt ids left out": ({"choices": [GOOD], "prompt_token_ids": None}, r"\$\.prompt_token_ids: None is not"),
    "no choice": ({"choices": [], "prompt_token_ids": [1]}, r"\$\.choices: \[\] should be non-empty"),
    "two choices": ({"choices": [GOOD, GOOD], "prompt_token_ids": [1]}, r"\$\.choices: .* is too long"),
    "no ids": (reply_of(None), r"\$\.choices\[0\]\.token_ids: None is not of type 'array'"),
    "text for ids": (reply_of("11"), r"\$\.choices\[0\]\.token_ids: '11' is not of type 'array'"),
    "half an id": (reply_of([11, 1.5]), r"\$\.choices\[0\]\.token_ids\[1\]: 1\.5 is not of type 'integer'"),
    "a truth for an id": (reply_of([True]), r"\$\.choices\[0\]\.token_ids\[0\]: True is not of type 'integer'"),
    "a negative id": (reply_of([-1]), r"\$\.choices\[0\]\.token_ids\[0\]: -1 is less than the minimum of 0"),
    "aborted": (
        reply_of([11], "abort"),
        r"\$\.choices\[0\]\.finish_reason: 'abort' is not one of \['stop', 'length'\]",
    ),
    "no finish": (reply_of([11], None), r"\$\.choices\[0\]\.finish_reason: None is not one of"),
    "no log-probability": (reply_of([11], logprobs={"content": [{}]}), r"\$\.choices\[0\]\.logprobs: "),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_answer(vocabulary, case: str):
    reply, told = MALFORMED[case]
    with pytest.raises(ServerUnavailable, match=f"the answer is malformed at {told}"):
        read_answer(reply, vocabulary)


def test_an_id_outside_the_vocabulary(vocabulary):
    size = len(vocabulary.token_bytes)
    assert read_answer(reply_of([size - 1], "length"), vocabulary).response_ids == (size - 1,)
    with pytest.raises(ServerUnavailable, match=f"holds token id {size}, and the vocabulary ends at {size - 1}"):
        read_answer(reply_of([11, size, vocabulary.stop_id]), vocabulary)


def test_an_id_that_no_answer_may_hold(vocabulary):
    """The learner could not score such an answer: an image belongs to it that nobody has."""
    assert vocabulary.vision_ids
    for token in vocabulary.vision_ids:
        with pytest.raises(ServerUnavailable, match=f"holds token id {token}, which stands for an image"):
            read_answer(reply_of([11, token, vocabulary.stop_id]), vocabulary)


def test_no_ids_and_no_stop(vocabulary):
    with pytest.raises(ServerUnavailable, match="holds no token and ended by length"):
        read_answer(reply_of([], "length"), vocabulary)


def test_whole_numbers_with_a_point_become_ids(vocabulary):
    """JSON knows one kind of number."""
    (token,) = read_answer(reply_of([11.0], "length"), vocabulary).response_ids
    assert type(token) is int


# --- where the repetition guard ends an answer --------------------------------------------------------------------

COORDINATES = {100, 101, 102}


@pytest.mark.parametrize(
    ("ids", "limits", "end"),
    [
        ([1, 7, 7, 7, 7], {"max_token_run": 3}, 4),
        ([1, 7, 7, 1, 7, 7], {"max_token_run": 3}, None),
        ([7], {"max_token_run": 1}, 1),
        # the second 1 2 ends at 5
        ([1, 2, 3, 1, 2, 3], {"ngram_size": 2, "max_ngram_repeats": 2}, 5),
        ([1, 2, 3, 1, 2, 3], {"ngram_size": 3, "max_ngram_repeats": 2}, 6),
        # the fifth coordinate stands at 7
        ([100, 101, 1, 102, 100, 2, 101, 3], {"max_objects": 1}, 7),
        ([100, 101, 1, 102, 100, 2, 3], {"max_objects": 1}, None),
        # whichever rule breaks first
        ([7, 7, 100, 100, 100, 100, 100], {"max_token_run": 4, "max_objects": 1}, 6),
        ([7] * 50, {}, None),
        ([], {"max_token_run": 2}, None),
    ],
)
def test_where_an_answer_first_repeats(ids, limits, end):
    assert first_repeat(ids, COORDINATES, replace(NO_GUARD, **limits), 4) == end


@pytest.fixture(scope="module")
def bench(quickstart):
    return load_bench(quickstart, num_samples=4)


def by_generate(bench, sampling):
    """(ids, finish) of each sample, the guard inside `generate`."""
    settings = {"decode_batch_size": 4, "start_id": "start", "seed": 0}
    backend = HfBackend(lambda: nullcontext(bench.model), bench.vocabulary, position_index(bench.model), **settings)
    with backend.current_weights(0):
        rollouts = backend.generate(bench.samples, sampling, finished_steps=0)
    return [(rollout.response_ids, rollout.finish) for rollout in rollouts]


def by_server(bench, sampling, answers, *, ends=lambda body, ids, finish: (ids, finish)):
    """The same of a server that gives these answers; `ends` is what it does to one, as (ids with their stop, how)."""
    stop = bench.vocabulary.stop_id
    whole = [([*ids, stop] if finish == "stop" else list(ids), finish) for ids, finish in answers]
    given = dict(zip(seeds_of(bench), whole, strict=True))
    with fake_of(bench, answer=lambda body: ends(body, *given[body["seed"]])) as server:
        rollouts = drawn_from(bench, [server], sampling)
    return [(rollout.response_ids, rollout.finish) for rollout in rollouts]


@pytest.fixture(scope="module")
def unguarded(bench):
    """What the untrained model writes, 12 tokens at most; it repeats itself."""
    return by_generate(bench, greedy_sampling(max_new_tokens=12))


def inside(body, ids, finish):
    """What a guard in the server makes of an answer: its own stop behind the token that broke a rule."""
    params = GuardParams.read(body["vllm_xargs"])
    watch = params.detector()
    if not watch.read(ids) or len(watch.ids) == body["max_completion_tokens"]:
        return ids, finish
    return [*watch.ids, params.stop_id], "stop"


@pytest.mark.parametrize(
    "limits", [{"max_token_run": 3}, {"ngram_size": 2, "max_ngram_repeats": 2}, {"max_token_run": 1}]
)
def test_a_server_s_answer_is_cut_where_generate_ends_it(bench, unguarded, limits):
    """Whether the server has a guard of its own or not: it saves tokens, and changes nothing."""
    guarded = greedy_sampling(max_new_tokens=12, repeat_terminate=replace(NO_GUARD, **limits))
    ended = by_generate(bench, guarded)
    assert "repeat" in {finish for _, finish in ended}
    assert by_server(bench, guarded, unguarded) == ended
    assert by_server(bench, guarded, unguarded, ends=inside) == ended


def test_the_last_token_may_be_the_stop_of_the_guard(bench):
    """11 equal tokens of 12: the stop that was forced is the twelfth, and the answer a repetition all the same."""
    guard = greedy_sampling(max_new_tokens=12, repeat_terminate=replace(NO_GUARD, max_token_run=11))
    answers = [((11,) * 12, "length")] * 4
    assert by_server(bench, guard, answers, ends=inside) == [((11,) * 11, "repeat")] * 4


def test_a_model_that_stops_where_a_rule_breaks_is_ended_too(bench):
    """As in `generate`, where nobody asks what it would have drawn."""
    guard = greedy_sampling(max_new_tokens=12, repeat_terminate=replace(NO_GUARD, max_token_run=3))
    assert by_server(bench, guard, [((12, 11, 11, 11), "stop")] * 4) == [((12, 11, 11, 11), "repeat")] * 4


def test_a_rule_that_breaks_at_the_limit_ends_nothing(bench):
    """12 equal tokens of 12: the answer was as long as it may be. One token more would be cut."""
    guard = replace(NO_GUARD, max_token_run=12)
    answers = [((11,) * 12, "length")] * 4
    at_limit = greedy_sampling(max_new_tokens=12, repeat_terminate=guard)
    assert by_server(bench, at_limit, answers) == answers
    below = greedy_sampling(max_new_tokens=13, repeat_terminate=guard)
    assert by_server(bench, below, answers) == [((11,) * 12, "repeat")] * 4

"""fp32 rollouts are what plain `generate` writes for one prompt at a time, whatever stands in the other slots."""

import random
from contextlib import nullcontext
from dataclasses import replace
from heapq import heapify, heapreplace

import pytest

from ds_stage2ab.codec.text import CODECS
from ds_stage2ab.data.records import read_records
from ds_stage2ab.engine.build import position_index
from ds_stage2ab.rollout.decoding.drafts import LONGEST, Drafter
from ds_stage2ab.rollout.hf import HfBackend
from ds_stage2ab.tools.digit_scenes import Layout, generate
from tests.unit.parts import NO_GUARD, greedy_sampling, load_bench
from tests.unit.rollout.oracle import plain_answers

SEED = 5
GREEDY = greedy_sampling(max_new_tokens=160)  # the longest answer, of five digits, needs about 130
RULES = replace(NO_GUARD, ngram_size=3, max_ngram_repeats=2, max_objects=3)
SAMPLINGS = {
    "greedy": GREEDY,
    "drawn": replace(GREEDY, temperature=0.7, top_p=0.9, top_k=50),
    "penalty": replace(GREEDY, repetition_penalty=1.3, max_new_tokens=60),
    "guard": replace(GREEDY, repeat_terminate=RULES),
    "everything": replace(
        GREEDY, temperature=1.0, top_k=40, repetition_penalty=1.1, repeat_terminate=RULES, max_new_tokens=60
    ),
}


def scenes(bench, folder, number):
    """Validation scenes of all sizes, with up to five digits."""
    layout = Layout(max_digits=5, min_height=34, max_side=112)
    generate(folder, seed=1, train_scenes=1, validation_scenes=number, layout=layout)
    records = read_records(folder / "validation.jsonl", image_root=None, box_format="bins")
    return [bench.encoder.encode(record, -1 - index) for index, record in enumerate(records)]


@pytest.fixture(scope="module")
def bench(shipped):
    return load_bench(shipped, num_samples=0)


@pytest.fixture(scope="module")
def samples(bench, tmp_path_factory):
    return scenes(bench, tmp_path_factory.mktemp("scenes") / "data", 6)


def make_backend(bench, decode_batch_size, *, codec=None):
    settings = {"decode_batch_size": decode_batch_size, "start_id": "start", "seed": SEED, "codec": codec}
    return HfBackend(lambda: nullcontext(bench.model), bench.vocabulary, position_index(bench.model), **settings)


def answers(backend, samples, sampling):
    with backend.current_weights(0):
        rollouts = backend.generate(samples, sampling, finished_steps=0)
    return [(rollout.response_ids, rollout.finish) for rollout in rollouts]


def scheduled(lengths, slots):
    """Passes of first-come list scheduling: each job goes to the slot that is free first."""
    free = [0] * slots
    heapify(free)
    for length in lengths:
        heapreplace(free, free[0] + length)
    return max(free)


def test_scheduling_by_hand():
    # slot 1: 5; slot 2: 2, then 4
    assert scheduled([5, 2, 4], 2) == 6
    assert scheduled([3, 3, 3], 8) == 3


@pytest.mark.parametrize("name", SAMPLINGS)
def test_rollouts_are_those_of_one_prompt_at_a_time(bench, samples, name):
    expected = plain_answers(bench, samples, SAMPLINGS[name], SEED)
    backend = make_backend(bench, 3)
    assert answers(backend, samples, SAMPLINGS[name]) == expected
    assert len({ids for ids, _ in expected}) > len(samples) // 2
    lengths = [len(ids) + (finish == "stop") for ids, finish in expected]
    assert backend.decoding.passes == scheduled(lengths, 3)
    assert (backend.decoding.tokens, backend.decoding.live) == (sum(lengths), sum(lengths))
    drafted = make_backend(bench, 3, codec=CODECS["array"])
    for _ in range(2):  # from what is true, and from the last answers
        assert answers(drafted, samples, SAMPLINGS[name]) == expected
        assert drafted.decoding.tokens == sum(lengths)
        assert 0 < drafted.decoding.accepted <= drafted.decoding.drafted
    # the same weights wrote the last answers: all of their tokens are taken, up to the longest draft
    assert drafted.decoding.live <= sum(-(-length // LONGEST) for length in lengths)


def test_whatever_is_drafted_changes_no_answer(bench, samples, monkeypatch):
    """Random text, coordinates, and drafts that end in mid-word, with everything on."""
    sampling = SAMPLINGS["everything"]
    expected = plain_answers(bench, samples, sampling, SEED)
    rng = random.Random(0)
    legal = list({*range(bench.model.config.text_config.vocab_size)} - {*bench.vocabulary.vision_ids})
    whole = Drafter.propose

    def wrong(drafter):
        right = whole(drafter)
        cut = right[: rng.randrange(9)] + rng.choices(legal, k=2)
        return rng.choice([right, rng.choices(legal, k=3), cut, []])

    monkeypatch.setattr(Drafter, "propose", wrong)
    backend = make_backend(bench, 3, codec=CODECS["array"])
    for _ in range(3):
        assert answers(backend, samples, sampling) == expected
        assert backend.decoding.accepted < backend.decoding.drafted


def test_slots_change_no_answer_and_are_never_more_than_allowed(bench, samples):
    """Memory that an earlier call has written, an earlier order, and lengths that are known now."""
    expected = plain_answers(bench, samples, SAMPLINGS["drawn"], SEED)
    lengths = [len(ids) + 1 for ids, _ in expected]
    rows = []
    hook = bench.model.model.language_model.register_forward_pre_hook(
        lambda module, arguments, named: rows.append(named["slots"].num_rows), with_kwargs=True
    )
    try:
        for slots in (2, 8):
            rows.clear()
            backend = make_backend(bench, slots)
            with backend.current_weights(0):
                for order in (range(len(samples)), random.Random(slots).sample(range(len(samples)), len(samples))):
                    asked = [samples[index] for index in order]
                    rollouts = backend.generate(asked, SAMPLINGS["drawn"], finished_steps=0)
                    assert [(one.response_ids, one.finish) for one in rollouts] == [expected[index] for index in order]
            assert max(rows) == min(slots, len(samples))
            # known lengths: the longest first
            assert backend.decoding.passes == scheduled(sorted(lengths, reverse=True), slots)
    finally:
        hook.remove()


@pytest.mark.soak
@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("checkpoint", ["shipped", "quickstart"])
def test_many_scenes_in_any_number_of_slots(request, checkpoint, name, tmp_path):
    """128 scenes; the random weights write ids that fit no grammar."""
    bench, sampling = load_bench(request.getfixturevalue(checkpoint), num_samples=0), SAMPLINGS[name]
    if checkpoint == "quickstart":
        sampling = replace(sampling, max_new_tokens=40)
    samples = scenes(bench, tmp_path / "data", 128)
    expected = dict(zip((s.id for s in samples), plain_answers(bench, samples, sampling, SEED), strict=True))
    for slots in (1, 3, 8, 16):
        random.Random(slots).shuffle(samples)
        for codec in (None, CODECS["array"]):
            backend = make_backend(bench, slots, codec=codec)
            assert answers(backend, samples, sampling) == [expected[sample.id] for sample in samples]

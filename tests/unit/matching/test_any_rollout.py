"""Parse, match and target of thousands of rollouts, held against the trees that they were made from.

Two real tokenizers, both forms. `make test` takes 500 rollouts of each of the four, `make soak` 5,000 others.
"""

import json
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from ds_stage2ab import ops
from ds_stage2ab.codec.text import CODECS
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.matching.append import appended_target
from ds_stage2ab.matching.assign import match_boxes
from ds_stage2ab.matching.iou import pairwise_iou
from ds_stage2ab.matching.parse import REASONS, STATES, parse_rollout
from ds_stage2ab.matching.scan import scan_arguments
from ds_stage2ab.ops import reference
from tests.parts import ROOT
from tests.real_tokenizers import qwen_vocabulary
from tests.rollout_cases import JSON, Case, cut_everywhere, make_case

PER_FORM = 500
COSTS = {"candidate_top_k": 10, "iou_gate": 0.3, "fp_cost": 1.0, "fn_cost": 1.0}
WEIGHTS = {"desc_ce_weight": 0.5, "drop_invalid_struct_ce_multiplier": 3.0, "where": "sample"}
TOKENIZERS = ("quickstart", "qwen")


@cache
def vocabulary_of(name: str) -> Vocabulary:
    shipped = ROOT / "assets" / "quickstart" / "stage1"
    if name == "qwen":
        return qwen_vocabulary()
    return Vocabulary.from_tokenizer(AutoTokenizer.from_pretrained(shipped))


def check(seed: int, vocabulary: Vocabulary, codec) -> tuple[str, tuple[str, ...]]:
    return check_case(seed, *make_case(seed, vocabulary, codec), vocabulary, codec)


def check_case(seed: int, case: Case, truth, vocabulary: Vocabulary, codec) -> tuple[str, tuple[str, ...]]:
    parsed = parse_rollout(case.ids, vocabulary, codec)
    match = match_boxes(parsed.objects, truth, **COSTS)
    target = appended_target(parsed, match, truth, vocabulary, codec, **WEIGHTS)
    try:
        check_scan(case.ids, vocabulary, codec)
        check_parse(case, parsed)
        check_prefix(case, parsed, vocabulary, codec)
        check_weights(case, parsed, match, target, vocabulary)
        check_document(case, match, truth, target, vocabulary, codec)
    except AssertionError as error:
        error.add_note(f"seed {seed}, {codec.name}: {case.text!r}, {case.ids}")
        raise
    return parsed.state, parsed.dropped


def check_scan(ids, vocabulary, codec):
    """The compiled scan and the plain one."""
    arguments = scan_arguments(ids, vocabulary)
    compiled = ops.scan_rollout(*arguments, **codec.grammar)
    plain = reference.scan_rollout(*arguments, *codec.grammar.values())
    assert all(map(torch.equal, compiled, plain))


def check_parse(case, parsed):
    assert parsed.state == case.state
    assert parsed.dropped == tuple(value.reason for value in case.complete if value.reason)
    kept = [value for value in case.complete if not value.reason]
    assert [(one.desc, one.box) for one in parsed.objects] == [(one.found.desc, one.found.box) for one in kept]
    assert [(one.span, one.desc_span) for one in parsed.objects] == [(one.span, one.desc_span) for one in kept]
    scored = [one for one in parsed.objects if one.score_slot >= 0]
    assert [one.score for one in scored] == [one.found.score for one in kept if len(one.coordinate_spans) > 4]


def check_prefix(case, parsed, vocabulary, codec):
    """The generated ids up to the cut, and exactly its bytes."""
    if not case.complete:
        assert list(parsed.prefix_ids) == vocabulary.encode(codec.opening)
        return
    cut = case.complete[-1].span[1]
    starts = vocabulary.starts_of(np.array(case.ids))
    num_whole = int(((starts[:-1] < cut) & (starts[1:] <= cut)).sum())
    assert list(parsed.prefix_ids[:num_whole]) == case.ids[:num_whole]
    assert len(parsed.prefix_ids) == num_whole or starts[num_whole] < cut
    assert vocabulary.written_all(parsed.prefix_ids) == case.text[:cut]


def check_weights(case, parsed, match, target, vocabulary):
    """Up to the last coordinate, by the spans of the tree: 1 where every byte is structure of a matched value, 0
    elsewhere; the tokens that end a value and go on behind it count if a true object is still to come."""
    kept = [value for value in case.complete if not value.reason]
    starts = vocabulary.starts_of(np.array(parsed.prefix_ids[: parsed.num_anchored], dtype=np.int64)).tolist()
    counted = np.zeros(max(starts[-1], len(case.text)), dtype=bool)
    for place, _ in match.pairs:
        counted[slice(*kept[place].span)] = True
        for span in (kept[place].desc_span, *kept[place].coordinate_spans):
            counted[slice(*span)] = False
    expected = [float(first < last and bool(counted[first:last].all())) for first, last in pairwise(starts)]
    said = [kept[place] for place, _ in match.pairs]
    for value in case.complete[:-1]:
        to_come = match.missed or any(later.span[0] > value.span[0] for later in said)
        at_end, behind = (
            [t for t, (first, last) in enumerate(pairwise(starts)) if first <= offset < last]
            for offset in (value.span[1] - 1, value.span[1])
        )
        assert behind or value is case.complete[-2]  # the token may hold the last value's first byte too
        for token in at_end if to_come else ():
            expected[token] = float(parsed.prefix_ids[token] not in vocabulary.coordinate_bins)
        for token in behind:
            expected[token] = float(bool(to_come))
    assert target.weights[: parsed.num_anchored].tolist() == expected
    assert not target.is_desc[: parsed.num_anchored].any()
    is_coordinate = vocabulary.kinds_of(target.ids) >= 0
    assert not target.weights[is_coordinate].any()
    is_tail = vocabulary.starts_of(target.ids)[:-1] > len(vocabulary.written_all(parsed.prefix_ids))
    tail = target.weights[is_tail & ~is_coordinate]
    assert set(tail.tolist()) <= {0.5, 1.0, 3.0 if parsed.dropped else 1.0}
    assert (tail > 0).all()


def check_document(case, match, truth, target, vocabulary, codec):
    """One JSON value that json.loads accepts, and every true object in it exactly once."""
    *ids, stop = target.ids.tolist()
    assert stop == vocabulary.stop_id and stop not in ids
    quote = "" if codec.quote else '"'
    texts = [
        f"{quote}{vocabulary.written(token).decode()}{quote}".encode()
        if token in vocabulary.coordinate_bins
        else vocabulary.written(token)
        for token in ids
    ]
    members = json.loads(b"".join(texts), object_pairs_hook=tuple)
    numbers = [value.number for value in case.complete]
    if codec.key[0]:
        first = max(numbers, default=0) + 1
        numbers += range(first, first + len(match.missed))
        assert [key for key, _ in members] == [f"object_{number}" for number in numbers]
        values = [value for _, value in members]
    else:
        ((key, values),) = members
        assert key == "objects"
    appended = values[len(case.complete) :]
    assert [dict(value)["desc"] for value in appended] == [
        vocabulary.normalise(truth[place].desc) for place in match.missed
    ]
    tokens = [[f"<|coord_{k}|>" for k in truth[place].box] for place in match.missed]
    assert [dict(value)["bbox_2d"] for value in appended] == tokens
    taught = [place for _, place in match.pairs] + list(match.missed)
    assert sorted(taught) == list(range(len(truth)))
    assert target.bins.tolist() == [k for place in taught for k in truth[place].box]
    assert len(target.slots) == 4 * len(truth)
    check_scores(case, match, truth, target, vocabulary, codec)


def check_scores(case, match, truth, target, vocabulary, codec):
    """Every object that was said, matched or not, and every appended one has a score."""
    if not codec.scored:
        assert len(target.score_slots) == len(target.score_bins) == 0
        return
    kept = [value.found for value in case.complete if not value.reason]
    pairs = dict(match.pairs)
    wanted = [
        int(999 * pairwise_iou([one.box], [truth[pairs[place]].box])[0, 0] + 0.5) if place in pairs else 0
        for place, one in enumerate(kept)
    ]
    assert target.score_bins.tolist() == [*wanted, *[999] * len(match.missed)]
    written = [vocabulary.coordinate_bins[token] for token in target.ids[target.score_slots].tolist()]
    assert written == [*(one.score for one in kept), *[999] * len(match.missed)]
    assert not set(target.score_slots.tolist()) & set(target.slots.tolist())


def check_many(name: str, form: str, seeds: range) -> None:
    seen = [check(seed, vocabulary_of(name), CODECS[form]) for seed in seeds]
    assert {state for state, _ in seen} == set(STATES)
    possible = {reason for reason in REASONS if CODECS[form].scored or reason != "missing_score"}
    assert {reason for _, dropped in seen for reason in dropped} == possible


@pytest.mark.parametrize("form", JSON)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_five_hundred_rollouts(name, form):
    check_many(name, form, range(PER_FORM))


@pytest.mark.soak
@pytest.mark.parametrize("form", JSON)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_five_thousand_rollouts(name, form):
    check_many(name, form, range(PER_FORM, PER_FORM + 5000))


def check_cuts(name: str, form: str, seeds: range) -> None:
    for seed in seeds:
        cases, truth = cut_everywhere(seed, vocabulary_of(name), CODECS[form])
        for case in cases:
            check_case(seed, case, truth, vocabulary_of(name), CODECS[form])


@pytest.mark.parametrize("form", JSON)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_answers_cut_before_every_byte(name, form):
    check_cuts(name, form, range(3))


@pytest.mark.soak
@pytest.mark.parametrize("form", JSON)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_many_answers_cut_before_every_byte(name, form):
    check_cuts(name, form, range(3, 30))


@pytest.mark.parametrize("form", JSON)
def test_random_ids_give_a_target(form):
    """Any ids at all, those beyond the tokenizer too: what is known is only what always holds."""
    vocabulary, codec, random = vocabulary_of("qwen"), CODECS[form], np.random.default_rng(0)
    opening = vocabulary.encode(codec.opening)
    for seed in range(200):
        drawn = random.integers(0, len(vocabulary.token_bytes) + 100, size=random.integers(0, 60)).tolist()
        ids = [*(opening if seed % 2 else []), *drawn]
        _, truth = make_case(seed, vocabulary, codec)
        parsed = parse_rollout(ids, vocabulary, codec)
        match = match_boxes(parsed.objects, truth, **COSTS)
        target = appended_target(parsed, match, truth, vocabulary, codec, **WEIGHTS)
        check_scan(ids, vocabulary, codec)
        assert len(target.slots) == 4 * len(truth)
        written = vocabulary.written_all(target.ids.tolist())
        json.loads(written if codec.quote else written.replace(b"<|coord_", b'"').replace(b"|>", b'"'))


def test_the_order_of_the_truth_permutes_the_match():
    vocabulary, codec, random = vocabulary_of("quickstart"), CODECS["array"], np.random.default_rng(1)
    for seed in range(100):
        case, truth = make_case(seed, vocabulary, codec)
        parsed = parse_rollout(case.ids, vocabulary, codec)
        order = random.permutation(len(truth)).tolist()
        before = match_boxes(parsed.objects, truth, **COSTS)
        after = match_boxes(parsed.objects, [truth[place] for place in order], **COSTS)
        pairs = [(p, truth[g]) for p, g in before.pairs]
        assert [(p, truth[order[g]]) for p, g in after.pairs] == pairs  # equal objects may take each other's places


def test_a_wrong_expectation_is_found():
    """The check itself: a case that claims another cut, another weight or another state fails."""
    vocabulary, codec = vocabulary_of("quickstart"), CODECS["array"]
    case, truth = next(
        (case, truth)
        for case, truth in (make_case(seed, vocabulary, codec) for seed in range(100))
        if case.state == "truncated" and any(not value.reason for value in case.complete)
    )
    parsed = parse_rollout(case.ids, vocabulary, codec)
    with pytest.raises(AssertionError):
        check_parse(replace(case, state="ok"), parsed)
    with pytest.raises(AssertionError):
        check_prefix(replace(case, complete=case.complete[:-1]), parsed, vocabulary, codec)
    match = match_boxes(parsed.objects, truth, **COSTS)
    target = appended_target(parsed, match, truth, vocabulary, codec, **WEIGHTS)
    with pytest.raises(AssertionError):
        check_weights(case, parsed, match, replace(target, weights=target.weights + 1), vocabulary)

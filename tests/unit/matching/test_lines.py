"""The compact form: parse, match and targets of many rollouts, held against the trees that they were made from.

Three tokenizers that merge across every border (Qwen's, the quickstart's, one of SentencePiece's kind). The oracle
writes a target's text itself, knows what each byte of it weighs, and only then looks at the tokens.
"""

from dataclasses import asdict, replace
from itertools import pairwise
from random import Random

import numpy as np
import pytest
import torch

from ds_stage2ab import ops
from ds_stage2ab.carriers import Truth
from ds_stage2ab.codec.text import encode_answer, get_codec
from ds_stage2ab.matching.append import appended_target
from ds_stage2ab.matching.assign import match_boxes
from ds_stage2ab.matching.parse import parse_rollout
from ds_stage2ab.matching.scan import scan_arguments
from ds_stage2ab.matching.targets import Entry, answer_target, rewritten_target
from ds_stage2ab.ops import reference
from tests.line_cases import NAMES, Case, cut_everywhere, make_case
from tests.parts import as_tuples
from tests.rollout_cases import random_box
from tests.unit.matching.test_real_vocabularies import COSTS, DESC, DROPS, vocabulary_of
from tests.unit.matching.test_real_vocabularies import NAMES as TOKENIZERS
from tests.unit.matching.written import in_any_tokens, offsets_of

COMPACT = get_codec("compact")
REWRITE = {"desc_ce_weight": DESC, "where": "sample"}
APPEND = {"drop_invalid_struct_ce_multiplier": DROPS, **REWRITE}
REASONS = {"missing_desc", "bbox_invalid"}
STATES = {"empty_answer", "ok", "malformed", "truncated_first_object", "truncated"}
NUM_CASES, NUM_ANSWERS = 150, 60  # of each tokenizer

by_each = pytest.mark.parametrize("name", TOKENIZERS)


def check(seed, case: Case, truth, vocabulary):
    parsed = parse_rollout(case.ids, vocabulary, COMPACT)
    match = match_boxes(parsed.objects, truth, **COSTS)
    target = appended_target(parsed, match, truth, vocabulary, COMPACT, **APPEND)
    try:
        check_scan(case.ids, vocabulary)
        check_parse(case, parsed, vocabulary)
        check_target(case, parsed, match, truth, target, vocabulary)
        check_rewritten(case, parsed, match, truth, vocabulary)
    except AssertionError as error:
        error.add_note(f"seed {seed}: {case.text!r}, {case.ids}, {truth}")
        raise
    return parsed


def check_scan(ids, vocabulary):
    arguments = scan_arguments(ids, vocabulary)
    assert all(map(torch.equal, ops.scan_lines(*arguments, 4), reference.scan_lines(*arguments, 4)))


def check_parse(case, parsed, vocabulary):
    assert parsed.state == case.state
    assert parsed.dropped == tuple(value.reason for value in case.complete if value.reason)
    kept = [value for value in case.complete if not value.reason]
    assert [(one.desc, one.box) for one in parsed.objects] == [(one.desc, one.corners) for one in kept]
    assert [(one.span, one.desc_span) for one in parsed.objects] == [(one.span, one.desc_span) for one in kept]
    cut = case.complete[-1].span[1] if case.complete else 0
    assert vocabulary.written_all(parsed.prefix_ids) == case.text[:cut]
    assert list(parsed.prefix_ids) == case.ids[: len(parsed.prefix_ids)]
    assert parsed.num_anchored == parsed.num_whole == len(parsed.prefix_ids)  # it ends with a coordinate


def written(objects, open_desc, after_a_value):
    """(the text of objects, regions of its bytes): one letter a byte, desc, coordinate or newline."""
    text, regions = b"", ""
    for one in objects:
        if one.desc != open_desc:
            head = b"\n" if text or after_a_value else b""
            text, regions = text + head + one.desc.encode(), regions + "n" * len(head) + "d" * len(one.desc.encode())
        box = "".join(f"<|coord_{k}|>" for k in one.box).encode()
        text, regions, open_desc = text + box, regions + "c" * len(box), one.desc
    return text, regions


def check_target(case, parsed, match, truth, target, vocabulary):
    """The text, and every field that belongs to positions, token by token."""
    said, missed = case.complete, [truth[place] for place in match.missed]
    kept = case.text[: said[-1].span[1]] if said else b""
    open_desc = said[-1].desc if said else ""
    missed = [replace(one, desc=vocabulary.normalise(one.desc)) for one in missed]
    text, regions = written(missed, open_desc, bool(said))
    *ids, stop = target.ids.tolist()
    assert target.ids.tolist()[: parsed.num_anchored] == list(parsed.prefix_ids) and not target.seam_fallback
    assert (stop, vocabulary.written_all(ids)) == (vocabulary.stop_id, kept + text)
    structure = DROPS if parsed.dropped else 1.0
    of_region = {"n": structure, "d": DESC, "c": 0.0}
    last_matched = max((parsed.objects[place].span[1] for place, _ in match.pairs), default=0)
    decisions = {value.span[1]: float(bool(missed) or value.span[1] < last_matched) for value in said[:-1]}
    decisions |= {len(kept): structure} if said and text[:1] == b"\n" else {}
    coordinate_slots, go_on = {*target.slots.tolist()}, 0
    for place, (first, last) in enumerate(pairwise(offsets_of(ids, vocabulary))):
        here = [weight for at, weight in decisions.items() if first <= at < last]
        expected = here or [0.0 if first < len(kept) else of_region[regions[first - len(kept)]]]
        is_coordinate = ids[place] in vocabulary.coordinate_bins
        assert target.weights[place] in ([0.0] if is_coordinate else expected), f"token {place}"
        assert target.is_desc[place] == (first >= len(kept) and regions[first - len(kept)] == "d"), f"token {place}"
        go_on += any(here) and first < len(kept) and (not is_coordinate or place in coordinate_slots)
    assert (target.weights[-1], target.is_desc[-1], target.num_stop) == (1.0, False, 1)
    assert target.num_go_on == go_on + len(missed)
    taught = [place for _, place in match.pairs] + list(match.missed)
    assert sorted(taught) == list(range(len(truth)))
    assert target.bins.tolist() == [k for place in taught for k in truth[place].box]
    slots = [slot for place, _ in match.pairs for slot in parsed.objects[place].slots]
    assert target.slots.tolist()[: len(slots)] == slots
    assert [vocabulary.coordinate_bins[ids[slot]] for slot in target.slots[len(slots) :]] == [
        k for one in missed for k in one.box
    ]
    again = parse_rollout(ids, vocabulary, COMPACT)
    assert again.state == ("ok" if ids else "empty_answer")
    said_and_missed = [(value.desc, value.corners) for value in said if not value.reason]
    said_and_missed += [(one.desc, one.box) for one in missed]
    assert [(one.desc, one.box) for one in again.objects] == said_and_missed


def check_rewritten(case, parsed, match, truth, vocabulary):
    """Channel A's answer, with the coordinates that were said."""
    said = {true: parsed.objects[place].box for place, true in match.pairs}
    for said_order, order in ((True, [*said, *match.missed]), (False, range(len(truth)))):
        made_of = (parsed, match, truth, vocabulary, COMPACT)
        made = rewritten_target(*made_of, said_order=said_order, keep_spurious=False, **REWRITE)
        read = [replace(truth[place], box=said.get(place, truth[place].box)) for place in order]
        entries = [Entry(read=one, learned=truth[place]) for one, place in zip(read, order, strict=True)]
        assert asdict(as_tuples(made)) == asdict(
            as_tuples(answer_target(entries, vocabulary, COMPACT, **REWRITE))
        )
        text, _ = written([replace(one, desc=vocabulary.normalise(one.desc)) for one in read], "", after_a_value=False)
        assert vocabulary.written_all(made.ids.tolist()) == text


def check_many(name, seeds):
    vocabulary = vocabulary_of(name)
    seen = [check(seed, *make_case(seed, vocabulary), vocabulary) for seed in seeds]
    assert {one.state for one in seen} == STATES
    assert {reason for one in seen for reason in one.dropped} == REASONS


@by_each
def test_a_hundred_and_fifty_rollouts(name):
    check_many(name, range(NUM_CASES))


@pytest.mark.soak
@by_each
def test_many_rollouts(name):
    check_many(name, range(NUM_CASES, NUM_CASES + 5000))


@by_each
def test_answers_cut_before_every_byte(name):
    for seed in range(4):
        cases, truth = cut_everywhere(seed, vocabulary_of(name))
        for case in cases:
            check(seed, case, truth, vocabulary_of(name))


@by_each
def test_any_tokens(name):
    """Tokens cut anywhere, in characters too, and single bytes."""
    vocabulary, whole = vocabulary_of(name), 0
    for seed in range(NUM_CASES):
        case, truth = make_case(seed, vocabulary)
        if case.state != "ok" or vocabulary.written_all(case.ids) != case.text:
            continue
        whole += 1
        spans = [span for value in case.complete for span in value.coordinate_spans]
        ids = in_any_tokens(case.text, spans, Random(seed), vocabulary)
        check(seed, replace(case, ids=ids), truth, vocabulary)
    assert whole > 15


def names_of(random, num):
    """Often the same one again."""
    names = [random.choice(NAMES)]
    while len(names) < num:
        names.append(names[-1] if random.random() < 0.4 else random.choice(NAMES))
    return names[:num]


@by_each
def test_answers_that_channel_a_could_have_written(name):
    """Whatever was missed, and whether its description is that of the last one: the ids are those of one answer."""
    vocabulary, shared = vocabulary_of(name), 0
    for seed in range(NUM_ANSWERS):
        random = Random(seed)
        objects = [Truth(desc=desc, box=random_box(random)) for desc in names_of(random, random.randrange(1, 8))]
        num_said = random.randrange(len(objects) + 1)
        ids = encode_answer(objects[:num_said], vocabulary, COMPACT).ids[:-1].tolist()
        parsed = parse_rollout(ids, vocabulary, COMPACT)
        boxes = [one.box for one in objects]
        pairs = tuple((place, place) for place in range(num_said))
        match = replace(match_boxes([], [], **COSTS), pairs=pairs, missed=tuple(range(num_said, len(objects))))
        target = appended_target(parsed, match, objects, vocabulary, COMPACT, **APPEND)
        whole = encode_answer(objects, vocabulary, COMPACT)
        assert (target.ids.tolist(), target.seam_fallback) == (whole.ids.tolist(), False)
        assert (target.slots.tolist(), target.bins.tolist()) == (whole.slots.tolist(), [k for b in boxes for k in b])
        shared += 0 < num_said < len(objects) and objects[num_said - 1].desc == objects[num_said].desc
    assert shared > 5


@by_each
def test_random_ids_give_a_target(name):
    vocabulary, random = vocabulary_of(name), np.random.default_rng(0)
    for seed in range(100):
        ids = random.integers(0, len(vocabulary.token_bytes) + 100, size=random.integers(0, 40)).tolist()
        mixed = [token if random.random() < 0.4 else vocabulary.coordinate_ids[token % 1000] for token in ids]
        _, truth = make_case(seed, vocabulary)
        for some in (ids, mixed):
            parsed = parse_rollout(some, vocabulary, COMPACT)
            match = match_boxes(parsed.objects, truth, **COSTS)
            target = appended_target(parsed, match, truth, vocabulary, COMPACT, **APPEND)
            check_scan(some, vocabulary)
            assert len(target.slots) == 4 * len(truth)


def test_a_wrong_expectation_is_found():
    """The check itself: a case that claims another state, another value or another weight fails."""
    vocabulary = vocabulary_of("quickstart")
    case, truth = next(
        found for found in (make_case(seed, vocabulary) for seed in range(100))
        if found[0].state == "truncated" and not found[0].complete[-1].reason
    )  # fmt: skip
    parsed = parse_rollout(case.ids, vocabulary, COMPACT)
    for wrong in (replace(case, state="ok"), replace(case, complete=case.complete[:-1])):
        with pytest.raises(AssertionError):
            check_parse(wrong, parsed, vocabulary)
    match = match_boxes(parsed.objects, truth, **COSTS)
    target = appended_target(parsed, match, truth, vocabulary, COMPACT, **APPEND)
    for changed in ("weights", "is_desc", "ids", "bins"):
        values = getattr(target, changed).copy()
        values[-1] = values[-1] == 0
        with pytest.raises(AssertionError):
            check_target(case, parsed, match, truth, replace(target, **{changed: values}), vocabulary)

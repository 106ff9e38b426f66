"""Channel B on the real tiny model's samples and vocabulary, with answers that were written beforehand.

What a target is for any answer at all is told in `tests/unit/matching`; here: what a sample's segment is.
"""

from dataclasses import replace
from itertools import groupby

import pytest
import torch

from ds_stage2ab.carriers import Decoding, Transfer, Truth
from ds_stage2ab.channels.rollout_matching import DECODING_TERMS, SERVER_TERMS
from ds_stage2ab.engine.build import position_index
from ds_stage2ab.matching.best_of import BEST_OF_TERMS
from ds_stage2ab.matching.health import TERM_NAMES
from ds_stage2ab.metrics.registry import reduce_terms
from ds_stage2ab.runtime.timers import Clock
from tests.unit.channels.answers import APPEND, CAT, DOG, GHOST, STEP, answered, segment_of
from tests.unit.parts import MATCHING, WrittenBackend

KITTEN = Truth(desc="kitten", box=(10, 20, 110, 145))  # IoU with the cat 100 * 100 / (100 * 125) = 0.8
OPENING, HEAD, MIDDLE = '{"objects": [', '{"desc": "', '", "bbox_2d": ['


def target_ids(bench, segment):
    return tuple(segment.input_ids[len(bench.samples[0].prompt_ids) :].tolist())


def runs(bench, segment):
    """[(text, weight)] behind the prompt, cut where the weight changes; the end of turn is `<stop>`."""
    start = len(bench.samples[0].prompt_ids)
    assert tuple(segment.input_ids[:start].tolist()) == bench.samples[0].prompt_ids
    assert not segment.weights[:start].any() and not segment.is_desc[:start].any()
    ids, weights = segment.input_ids[start:].tolist(), segment.weights[start:].tolist()
    written = [b"<stop>" if token == bench.vocabulary.stop_id else bench.vocabulary.written(token) for token in ids]
    weighted = groupby(zip(written, weights, strict=True), lambda pair: pair[1])
    return [(b"".join(piece for piece, _ in run).decode(), weight) for weight, run in weighted]


def box_runs(box, weight):
    """Each coordinate has weight 0, the commas between them `weight`."""
    return [run for k in box for run in ((f"<|coord_{k}|>", 0.0), (", ", weight))][:-1]


def supervised(bench, segment):
    """[(bin that was written, bin that is taught)] slot by slot."""
    written = [bench.vocabulary.coordinate_bins[token] for token in segment.input_ids[segment.slots].tolist()]
    return list(zip(written, segment.bins.tolist(), strict=True))


def as_written(*objects):
    return [(k, k) for one in objects for k in one.box]


def without_zeros(segment):
    return {name: term for name, term in segment.terms.items() if term[0] != 0}


# --- one answer -------------------------------------------------------------------------------------------------


def test_all_found(bench):
    ids = answered(bench, CAT, DOG)
    segment = segment_of(bench, ids)
    assert target_ids(bench, segment) == (*ids, bench.vocabulary.stop_id)
    assert runs(bench, segment) == [
        (OPENING + '{"', 0.0),  # the last token is ` [{"`
        ('desc": "', 1.0),
        ("cat", 0.0),
        (MIDDLE, 1.0),
        *box_runs(CAT.box, 1.0),
        ("]},", 1.0),  # one token: the cat ends, and another object follows
        (' {"', 0.0),  # one token that begins with the separator's blank
        ('desc": "', 1.0),
        ("big dog", 0.0),
        (MIDDLE, 1.0),
        *box_runs(DOG.box, 1.0),
        ("]}]}<stop>", 1.0),
    ]
    assert supervised(bench, segment) == as_written(CAT, DOG)
    assert not segment.is_desc.any()
    assert without_zeros(segment) == {
        "rollout/count": (1, 1),
        "rollout/tokens": (len(ids), 1),
        "match/precision": (2, 2),
        "match/recall": (2, 2),
        "match/f1": (4, 4),
        "match/iou": (2, 2),
        "match/same_desc_rate": (2, 2),
        "match/predicted_per_true": (2, 2),
        "parse/ok": (1, 1),
        "target/matched": (2, 1),
        "target/go_on": (1, 1),
        "target/stop": (1, 1),
    }


def test_one_missed_is_appended(bench):
    ids = answered(bench, DOG)
    segment = segment_of(bench, ids, desc_ce_weight=0.25)
    assert runs(bench, segment) == [
        (OPENING + '{"', 0.0),
        ('desc": "', 1.0),
        ("big dog", 0.0),
        (MIDDLE, 1.0),
        *box_runs(DOG.box, 1.0),
        (']}, {"desc": "', 1.0),
        ("cat", 0.25),
        (MIDDLE, 1.0),
        *box_runs(CAT.box, 1.0),
        ("]}]}<stop>", 1.0),
    ]
    # the generated ids up to the last coordinate: all but the ends of the dog and of the answer, "]}" and "]}"
    assert target_ids(bench, segment)[: len(ids) - 2] == tuple(ids[:-2])
    assert target_ids(bench, segment)[:-1] == answered(bench, DOG, CAT)
    assert supervised(bench, segment) == as_written(DOG, CAT)
    assert bench.vocabulary.written_all(segment.input_ids[segment.is_desc].tolist()) == b"cat"
    assert (segment.terms["match/precision"], segment.terms["match/recall"]) == ((1, 1), (1, 2))


def test_a_matched_object_keeps_its_words_and_learns_the_true_bins(bench):
    ids = answered(bench, KITTEN, DOG)
    segment = segment_of(bench, ids)
    assert target_ids(bench, segment)[:-1] == ids  # 145 and "kitten" stay
    assert supervised(bench, segment) == [(10, 10), (20, 20), (110, 110), (145, 120), *as_written(DOG)]
    assert runs(bench, segment)[2] == ("kitten", 0.0)
    assert segment.terms["match/iou"] == (pytest.approx(1.8, rel=1e-12), 2)  # 0.8 + 1
    assert segment.terms["match/same_desc_rate"] == (1, 2)


def test_a_spurious_object_stays_and_teaches_nothing(bench):
    ids = answered(bench, CAT, GHOST, DOG)
    segment = segment_of(bench, ids)
    assert target_ids(bench, segment)[:-1] == ids
    ghost = f" {HEAD}ghost{MIDDLE}<|coord_800|>, <|coord_0|>, <|coord_900|>, <|coord_50|>"
    place = runs(bench, segment).index((ghost, 0.0))
    assert runs(bench, segment)[place - 1 : place + 3] == [("]},", 1.0), (ghost, 0.0), ("]},", 1.0), (' {"', 0.0)]
    assert supervised(bench, segment) == as_written(CAT, DOG)
    assert (segment.terms["match/precision"], segment.terms["match/recall"]) == ((2, 3), (2, 2))


def test_an_invalid_value_stays_and_raises_the_weight_of_what_is_appended(bench):
    ids = bench.vocabulary.encode('{"objects": [{"desc": "cat"}]}')
    settings = {"desc_ce_weight": 0.25, "targets": replace(APPEND, drop_invalid_struct_ce_multiplier=3.0)}
    one = replace(bench, samples=[replace(bench.samples[0], objects=(DOG,))])
    segment = segment_of(one, ids, **settings)
    assert runs(bench, segment) == [
        ('{"objects": [{"desc": "cat"', 0.0),
        ('}, {"desc": "', 3.0),  # `},` is one token: what is decided behind the value
        ("big dog", 0.25),
        (MIDDLE, 3.0),
        *box_runs(DOG.box, 3.0),
        ("]}", 3.0),
        ("]}<stop>", 1.0),
    ]
    assert supervised(bench, segment) == as_written(DOG)
    assert segment.terms["drop/missing_geom"] == (1, 1)
    assert segment.terms["rollout/values_dropped_rate"] == (1, 1)


def test_an_empty_answer_is_teacher_forcing_but_for_its_opening(bench):
    segment, taught = segment_of(bench, answered(bench)), bench.segments()[0]
    assert torch.equal(segment.input_ids, taught.input_ids)
    # ` [{"` holds the first byte behind the opening: it decides that an object follows
    prompt, opening = len(bench.samples[0].prompt_ids), len(bench.vocabulary.encode('{"objects":'))
    assert taught.weights[prompt : prompt + opening].all() and not segment.weights[: prompt + opening].any()
    assert torch.equal(segment.weights[prompt + opening :], taught.weights[prompt + opening :])
    for name in ("is_desc", "slots", "bins", "position_ids"):
        assert torch.equal(getattr(segment, name), getattr(taught, name)), name
    assert (segment.terms["parse/empty_answer"], segment.terms["match/precision"]) == ((1, 1), (0, 0))


@pytest.mark.parametrize("text", ["I see a cat.", "", '{"object', "```json"])
def test_garbage_leaves_no_generated_id(bench, text):
    segment = segment_of(bench, bench.vocabulary.encode(text))
    assert torch.equal(segment.input_ids, bench.segments()[0].input_ids)
    assert runs(bench, segment)[0] == ('{"objects":', 0.0)
    assert supervised(bench, segment) == as_written(CAT, DOG)
    assert segment.terms["parse/no_json"] == (1, 1)


def test_a_truncated_answer_is_completed_behind_its_last_value(bench):
    whole = answered(bench, DOG, CAT)
    kept = len(answered(bench, DOG)) - 2  # up to the dog's last coordinate
    segment = segment_of(bench, whole[:-4], truncated=(0,))  # in the middle of the cat's box
    assert target_ids(bench, segment)[:kept] == whole[:kept]
    assert bench.vocabulary.written_all(target_ids(bench, segment)[kept:]).decode() == (
        f"]}}, {HEAD}cat{MIDDLE}<|coord_10|>, <|coord_20|>, <|coord_110|>, <|coord_120|>]}}]}}"
    )
    assert supervised(bench, segment) == as_written(DOG, CAT)
    assert segment.terms["parse/truncated"] == (1, 1)
    assert segment.terms["rollout/truncation_rate"] == (1, 1)
    assert segment.terms["rollout/tokens"] == (len(whole) - 4, 1)


def test_generated_ids_up_to_the_last_coordinate_are_never_tokenised_again(bench):
    # one id for each byte, and spaces where no codec of ours writes them
    vocabulary, coordinates = bench.vocabulary, bench.vocabulary.coordinate_ids
    parts = [
        b'{ "objects":[{"bbox_2d":[', coordinates[10], b",", coordinates[20], b",", coordinates[110], b",",
        coordinates[120], b'],  "desc":"CAT"}',
    ]  # fmt: skip
    ids = [n for part in parts for n in ([part] if isinstance(part, int) else [vocabulary.byte_ids[b] for b in part])]
    segment = segment_of(bench, ids, desc_ce_weight=0.25)
    kept = ids.index(coordinates[120]) + 1
    assert target_ids(bench, segment)[:kept] == tuple(ids[:kept])
    assert runs(bench, segment)[:8] == [
        ('{ "objects":[', 0.0),
        ('{"bbox_2d":[', 1.0),
        ("<|coord_10|>", 0.0),
        (",", 1.0),
        ("<|coord_20|>", 0.0),
        (",", 1.0),
        ("<|coord_110|>", 0.0),
        (",", 1.0),
    ]
    assert runs(bench, segment)[8:13] == [
        ("<|coord_120|>", 0.0),
        ('],  "desc":"', 1.0),
        ("CAT", 0.0),
        ('"}, {"desc": "', 1.0),
        ("big dog", 0.25),
    ]
    assert supervised(bench, segment) == as_written(CAT, DOG)


@pytest.mark.parametrize("answer", [(CAT, DOG), (GHOST,), ()], ids=["found", "spurious", "empty"])
def test_positions_and_image_are_the_samples(bench, answer):
    sample, segment = bench.samples[0], segment_of(bench, answered(bench, *answer))
    grid = sample.vision.image_grid_thw
    assert torch.equal(segment.position_ids, position_index(bench.model)(segment.input_ids, grid))
    assert segment.vision is sample.vision
    assert (segment.sample_id, segment.draw) == ("train-000000", 0)
    of_backends = (*SERVER_TERMS, *DECODING_TERMS)
    names = (*TERM_NAMES, *BEST_OF_TERMS, *of_backends)
    assert tuple(segment.terms) == names == bench.rollout_matching(None).term_names
    assert [segment.terms[name] for name in of_backends] == [(0, 0)] * 8, "the answer was written beforehand"


def test_what_is_known_of_the_servers_is_the_same_for_every_rollout(bench):
    backend = WrittenBackend({0: answered(bench, CAT), 1: answered(bench, DOG)})
    backend.probe_gap, backend.transfer = 0.25, Transfer(seconds=1.5, num_bytes=2**33)
    segments = list(bench.rollout_matching(backend).segments(bench.samples[:2], STEP, Clock()))
    terms = [[segment.terms[name] for name in SERVER_TERMS] for segment in segments]
    assert terms == [[(0.25, 1), (1.5, 1), (2**33, 1)]] * 2
    total = {name: (sum(one.terms[name][0] for one in segments), 2) for name in SERVER_TERMS}
    assert list(reduce_terms(total).values()) == [0.25, 1.5, 2**33], "means: as many rollouts, the same numbers"


def test_what_decoding_took_is_shared_among_the_rollouts_of_a_call(bench):
    backend = WrittenBackend({0: answered(bench, CAT), 1: answered(bench, DOG)})
    backend.decoding = Decoding(
        answers=2, tokens=30, passes=12, live=20, slots=48, drafted=16, accepted=10, columns=1000, padding=200
    )
    segments = list(bench.rollout_matching(backend).segments(bench.samples[:2], STEP, Clock()))
    total = {name: tuple(map(sum, zip(*(one.terms[name] for one in segments), strict=True))) for name in DECODING_TERMS}
    # 12 passes of one call; 30 tokens in 20 rows of passes; 20 of 48 slots; 200 of 1,000 keys; 10 of 16 tokens
    assert list(reduce_terms(total).values()) == [12, 1.5, 20 / 48, 0.2, 0.625]


def bins_with(bench, truth, answer, **matching):
    """The bins that are taught, box by box, under these settings of the section."""
    channel = bench.rollout_matching(WrittenBackend({0: answered(bench, *answer)}), targets=APPEND)
    channel.section = replace(MATCHING, **matching)
    (segment,) = channel.segments([replace(bench.samples[0], objects=truth)], STEP, Clock())
    written, taught = zip(*supervised(bench, segment), strict=True)
    return [(written[n : n + 4], taught[n : n + 4]) for n in range(0, len(written), 4)]


@pytest.mark.parametrize(
    ("matching", "matched"),
    [
        ({"iou_gate": 0.8}, True),  # the IoU is 0.8
        ({"iou_gate": 0.81}, False),
        ({"fp_cost": 0.15, "fn_cost": 0.1}, True),  # 1 - 0.8 = 0.2 is less than the two left alone, 0.25
        ({"fp_cost": 0.1, "fn_cost": 0.05}, False),
    ],
    ids=str,
)
def test_gate_and_costs_are_those_of_the_section(bench, matching, matched):
    written = KITTEN.box if matched else CAT.box  # a matched box stays as it was written, a missed one is appended
    assert bins_with(bench, (CAT,), (KITTEN,), **matching) == [(written, CAT.box)]


def test_the_number_of_candidates_is_the_sections(bench):
    # Both predictions fit the lower box best: 125 / 130 and 120 / 130 against 100 / 125 and 100 / 120.
    low, lower, between = (replace(CAT, box=(10, 20, 110, y2)) for y2 in (120, 150, 140))
    truth, answer = (low, lower), (KITTEN, between)
    both = [(KITTEN.box, lower.box), (between.box, low.box)]  # 0.0385 + 0.1667 costs less than 0.2 + 0.0769
    assert bins_with(bench, truth, answer, candidate_top_k=2) == both
    one = [(KITTEN.box, lower.box), (low.box, low.box)]
    assert bins_with(bench, truth, answer, candidate_top_k=1) == one

"""Appended targets, token by token: tokens of several regions, those that decide, and what is no target at all."""

from dataclasses import replace

import pytest

from ds_stage2ab.carriers import Match
from ds_stage2ab.errors import DataError
from ds_stage2ab.matching.append import appended_target
from ds_stage2ab.matching.parse import parse_rollout
from tests.unit.matching.test_append import (
    ARRAY,
    CAT,
    CAT_TEXT,
    DOG,
    DOG_TEXT,
    DROPPED,
    GHOST,
    NEAR_CAT,
    OPENING,
    WEIGHTS,
    box_text,
    by_bytes,
    target_of,
    with_tokens,
)
from tests.unit.matching.test_parse import spell


@pytest.mark.parametrize(
    ("piece", "weight"),
    [
        ('": "', 1.0),  # up to the opening quote: structure
        ('": "c', 0.0),  # starts in structure, holds a byte of the description
        ('"cat"', 0.0),  # the description is inside of one token
        ('t",', 0.0),  # starts in the description
        ('", "b', 1.0),  # from the closing quote on: structure
        (' [{"', 0.0),  # starts in the opening
        ('{"d', 1.0),  # starts with the object
        ("]}", 1.0),  # ends with the object
        ("]},", 0.0),  # goes on, and no true object is to come
        ("}, ", 0.0),
    ],
)
def test_a_token_of_the_prefix_counts_only_as_a_whole(vocabulary, piece, weight):
    longer, (new,) = with_tokens(by_bytes(vocabulary), piece.encode())
    before, _, behind = f"{OPENING}{CAT_TEXT}, 1]}}".partition(piece)
    ids = [*spell(longer, before), new, *spell(longer, behind)]
    target = target_of(longer, ids, [CAT])
    assert target.weights[target.ids.index(new)] == weight


@pytest.mark.parametrize("piece", ["]},", "}, ", ", "])
def test_the_token_that_goes_on_counts_where_a_true_object_is_to_come(vocabulary, piece):
    longer, (new,) = with_tokens(by_bytes(vocabulary), piece.encode())
    for first in (CAT_TEXT, GHOST):  # whatever value it stands behind
        before, _, behind = f"{OPENING}{first}, {DOG_TEXT}]}}".partition(f"{first}, ")
        before += first[: -len(piece.rstrip(", "))] if piece != ", " else first
        ids = [*spell(longer, before), new, *spell(longer, (" " if piece == "]}," else "") + behind)]
        for truth, weight in (([DOG], 1.0), ([CAT, DOG], 1.0), ([CAT], float(first == GHOST))):
            target = target_of(longer, ids, truth)
            assert target.weights[target.ids.index(new)] == weight


def test_the_token_of_the_cut_is_encoded_again_and_counts(vocabulary):
    longer, (new,) = with_tokens(by_bytes(vocabulary), b"}]}")
    head = f"{OPENING}{NEAR_CAT}"[:-1]
    target = target_of(longer, [*spell(longer, head), new], [CAT, DOG])
    assert new not in target.ids
    num_head = len(spell(longer, head))
    # `]` and `}` of the kitten, `, {"desc": "` (12 bytes) of the dog: structure, of the prefix and appended.
    assert longer.written_all(target.ids[num_head - 1 : num_head + 16]) == b']}, {"desc": "dog'
    assert target.weights[num_head - 1 : num_head + 16] == (1.0,) * 14 + (0.5,) * 3


def test_a_token_behind_the_prefix_takes_the_region_of_its_first_byte(vocabulary):
    longer, new = with_tokens(vocabulary, b', {"desc": "c', b'at", "bbox_2d": [', b"]}]}")
    tail = [new[0], new[1], *spell(vocabulary, box_text(*CAT.box)[1:-1]), new[2]]
    ids = spell(longer, f"{OPENING}{DROPPED}")
    # What was dropped has no coordinates: it is encoded together with what is appended.
    anchor = parse_rollout(ids, longer, ARRAY).num_anchored
    assert longer.written_all(ids[:anchor]) == OPENING.encode()
    longer = replace(longer, encode=lambda _: [*ids[anchor:], *tail])
    target = target_of(longer, ids, [CAT])
    weight_of = dict(zip(target.ids, target.weights, strict=True))
    assert [weight_of[token] for token in new] == [3.0, 0.5, 1.0]  # the last one holds the close
    assert [target.is_desc[target.ids.index(token)] for token in new] == [False, True, False]


@pytest.mark.parametrize(("truth", "piece", "weight"), [([CAT], b'[{"', 1.0), ([], b"[]}", 1.0)])
def test_the_token_behind_an_opening_decides_whether_to_begin(vocabulary, truth, piece, weight):
    longer, (new,) = with_tokens(by_bytes(vocabulary), piece)

    def encode(text: str) -> list[int]:
        before, found, behind = text.partition(piece.decode())
        return [*spell(longer, before), *([new] if found else []), *spell(longer, behind)]

    target = target_of(replace(longer, encode=encode), spell(longer, f"{OPENING}]}}"), truth)
    assert target.weights[target.ids.index(new)] == weight
    assert not any(target.weights[: target.ids.index(new)])


def test_a_token_without_bytes_is_not_supervised(vocabulary):
    longer, (new,) = with_tokens(by_bytes(vocabulary), b"")
    ids = spell(longer, f"{OPENING}{CAT_TEXT}]}}")
    target = target_of(longer, [*ids[:15], new, *ids[15:]], [CAT])
    assert target.weights[15] == 0.0
    assert target.weights[14] == target.weights[16] == 1.0


def test_a_description_that_cannot_be_written_names_the_sample(vocabulary):
    broken = replace(vocabulary, encode=lambda _: [])
    with pytest.raises(DataError, match="cannot write") as error:
        target_of(broken, [], [CAT])
    assert error.value.where == "sample"


@pytest.mark.parametrize(("missed", "spurious"), [((), ()), ((0,), (0,))])
def test_a_match_of_something_else_is_a_mistake(vocabulary, missed, spurious):
    match = Match(pairs=(), missed=missed, spurious=spurious)
    parsed = parse_rollout([], vocabulary, ARRAY)
    with pytest.raises(AssertionError, match="the match is of other"):
        appended_target(parsed, match, [CAT], vocabulary, ARRAY, **WEIGHTS)

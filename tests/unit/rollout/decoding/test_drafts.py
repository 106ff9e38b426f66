"""Drafts by hand: tokens are small numbers, 100 and more are coordinates."""

from dataclasses import replace
from itertools import product, takewhile
from random import Random

from ds_stage2ab.carriers import Truth
from ds_stage2ab.codec.text import CODECS, encode_answer
from ds_stage2ab.rollout.decoding.drafts import LONGEST, Drafter, cut
from tests.real_tokenizers import qwen_vocabulary

COORDINATES = range(100, 200)
# opening 1 2; an object: 3 <name> 4, four coordinates with 5 between them; 6 between objects; 7 8 at the end
TRUE = [1, 2, 3, 21, 4, 100, 5, 101, 5, 102, 5, 103, 6, 3, 22, 23, 4, 104, 5, 105, 5, 106, 5, 107, 7, 8]


def after(answer, chunks=None):
    drafter = Drafter(chunks or cut(TRUE, COORDINATES), COORDINATES, 4)
    drafter.read(answer)
    return drafter.propose()


def test_a_known_answer_is_cut_at_its_coordinates():
    assert cut(TRUE, COORDINATES) == ((1, 2, 3, 21, 4), (5,), (5,), (5,), (6, 3, 22, 23, 4), (5,), (5,), (5,), (7, 8))


def test_what_stands_at_the_same_place_up_to_the_next_coordinate():
    assert after([]) == [1, 2, 3, 21, 4]
    assert after([1, 2, 3]) == [21, 4]
    assert after(TRUE[:5]) == []  # a coordinate comes next
    assert after([*TRUE[:5], 150]) == [5]  # whatever it was
    assert after([*TRUE[:5], 150, 5, 150, 5, 150, 5, 150]) == [6, 3, 22, 23, 4]
    assert after([*TRUE[:-2]]) == [7, 8]


def test_an_answer_that_leaves_the_known_one_is_met_where_it_comes_back():
    assert after([1, 2, 3, 99]) == []  # another name
    assert after([1, 2, 3, 99, 4]) == []
    second = [*TRUE[:12], 6, 3]
    assert after([*second, 99]) == []
    assert after([*second, 22]) == [23, 4]
    assert after([*second, 99, 23]) == [4]


def test_an_answer_that_ends_sooner_or_later_than_the_known_one():
    assert after([*TRUE[:12], 7]) == [8]
    more = [*TRUE[:24], 6]
    assert after(more) == [3, 22, 23, 4]  # as another object does
    assert after([*more, 3, 99, 4]) == []
    assert after([*more, 3, 99, 4, 110]) == [5]


def test_a_draft_has_an_end():
    assert after([], cut([1] * 80, COORDINATES)) == [1] * LONGEST


def test_boxes_of_one_name_may_follow_each_other():
    """Nothing stands between them: the next coordinate is not guessed."""
    guess = cut([1, 100, 101, 102, 103, 104, 105, 106, 107, 2], COORDINATES)
    assert after([1, 100], guess) == []
    assert after([1, 100, 101, 102, 103, 104, 105, 106, 107], guess) == [2]


def test_structure_alone_in_qwens_vocabulary():
    """Passes per token of true answers, by guesses whose names, boxes and number of objects are other ones."""
    vocabulary, rng = qwen_vocabulary(), Random(0)
    share = {form: [0, 0] for form in ("array", "keyed")}
    for form, _ in product(share, range(5)):
        names = [rng.choice(("person", "traffic light", "parking meter", "dog", "wine glass")) for _ in range(20)]
        objects = [Truth(desc=name, box=(place, 10, 500, 600)) for place, name in enumerate(names)]
        ids = encode_answer(objects, vocabulary, CODECS[form]).ids.tolist()
        others = [replace(one, desc="zebra crossing") for one in objects[: rng.randrange(2, 9)]]
        known = encode_answer(others, vocabulary, CODECS[form]).ids[:-1].tolist()
        drafter = Drafter(cut(known, vocabulary.coordinate_bins), vocabulary.coordinate_bins, 4)
        share[form][0] += passes_of(ids, drafter)
        share[form][1] += len(ids)
    assert share["array"][0] <= 0.33 * share["array"][1]
    assert share["keyed"][0] <= 0.30 * share["keyed"][1]


def passes_of(ids, drafter):
    """How many passes write these tokens."""
    passes = 0
    while ids:
        same = takewhile(lambda pair: pair[0] == pair[1], zip(ids[:-1], drafter.propose(), strict=False))
        taken = 1 + len(list(same))
        drafter.read(ids[:taken])
        ids, passes = ids[taken:], passes + 1
    return passes

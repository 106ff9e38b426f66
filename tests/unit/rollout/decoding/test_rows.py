"""An answer that grows, by hand; one function for each invariant of the module."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from ds_stage2ab.rollout.decoding.rows import Row
from ds_stage2ab.rollout.repeat_guard import IncrementalDetector
from tests.unit.parts import NO_GUARD

STOP = 9
PROMPT = (1, 2, 3)


def row(max_new_tokens=8, **limits):
    guard = IncrementalDetector(replace(NO_GUARD, **limits), (), 4) if limits else None
    request = SimpleNamespace(prompt=PROMPT)
    settings = {"max_new_tokens": max_new_tokens, "stop_id": STOP, "guard": guard, "drafter": None}
    return Row(request=request, started=0.0, offset=0, **settings)


def taken(one, *passes):
    """Of passes (draft, what the model chooses); how many tokens each has given."""
    found = []
    for draft, chosen in passes:
        one.draft = draft
        found.append(one.take(chosen))
    return found


@pytest.mark.parametrize(
    ("limits", "chosen", "ids", "finish"),
    [
        ({}, [4, 5, STOP], [4, 5], "stop"),
        ({}, [STOP], [], "stop"),
        ({"max_new_tokens": 3}, [4, 5, 6], [4, 5, 6], "length"),
        ({"max_new_tokens": 3}, [4, 5, STOP], [4, 5], "stop"),
        ({"max_token_run": 2}, [4, 5, 5], [4, 5, 5], "repeat"),
        ({"max_new_tokens": 3, "max_token_run": 2}, [4, 5, 5], [4, 5, 5], "length"),
    ],
)
def test_where_an_answer_ends(limits, chosen, ids, finish):
    one = row(**limits)
    for token in chosen:
        assert one.finish is None
        assert taken(one, ([], [token])) == [1]
    assert (one.ids, one.finish) == (ids, finish)


def test_a_draft_gives_the_tokens_that_single_passes_give():
    # the model says 4 5 6 7 and the stop, each only after those before it; else 0
    one = row()
    assert taken(one, ([4, 5], [4, 5, 6]), ([8], [7, 0]), ([], [STOP])) == [3, 1, 1]
    assert (one.ids, one.finish) == ([4, 5, 6, 7], "stop")
    assert (one.num_drafted, one.num_accepted) == (3, 2)
    ended = row(max_new_tokens=2)
    assert taken(ended, ([4], [4, 5])) == [2] and ended.finish == "length"
    stopped = row()
    assert taken(stopped, ([4, 5, 6], [4, STOP, 6, 0])) == [2] and stopped.ids == [4]
    repeated = row(max_token_run=2)
    assert taken(repeated, ([4, 4, 4], [4, 4, 4, 4])) == [2] and (repeated.ids, repeated.finish) == ([4, 4], "repeat")


def test_all_tokens_but_the_newest_are_in_the_slot():
    one = row()
    assert one.fed() == [1, 2, 3]
    for passed in (([4, 5], [4, 5, 6]), ([8], [7, 0]), ([], [8])):
        taken(one, passed)
        assert one.num_cached == len(PROMPT) + len(one.ids) - 1
        assert one.fed() == [one.ids[-1]]

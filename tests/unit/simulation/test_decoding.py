"""List scheduling on permits, by hand and against its bounds."""

import heapq
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_stage2ab.simulation.decoding import Owned, Tally, at_servers, decode
from ds_stage2ab.simulation.machine import Machine
from tests.unit.simulation.setups import costs, requests

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


def decoded(owners, server):
    """(seconds, tally, (rank, place) -> when it was answered)."""
    machine, tally, seen = Machine(None), Tally(), {}
    machine.start(decode(owners, server, lambda rank, place: seen.update({(rank, place): machine.now}), tally))
    return machine.run(), tally, seen


def owned(permits, *answers) -> Owned:
    (one,) = at_servers(list(enumerate(requests(*answers))), [permits])
    return one


def list_scheduling(lengths, machines):
    """Graham (1969): each job in turn to the machine that is free first; the last end."""
    free = [0] * machines
    for length in lengths:
        heapq.heapreplace(free, free[0] + length)
    return max(free)


def test_a_permit_takes_the_next_request_when_it_is_free():
    """Two permits: 3 and 5 begin; 2 begins at 3, ends with 5 at 5; 4 begins there: 9 passes, 14 rows."""
    seconds, tally, seen = decoded([owned(2, 3, 5, 2, 4)], costs(server_pass_s=1.0).server)
    assert seen == {(0, 0): 3.0, (0, 1): 5.0, (0, 2): 5.0, (0, 3): 9.0}
    assert (seconds, tally.passes, tally.live) == (9.0, 9.0, 14.0)


def test_a_pass_takes_longer_with_more_rows():
    """3 passes of two rows, 2 s each, then 2 of one row, 1.5 s each."""
    seconds, _, seen = decoded([owned(2, 3, 5)], costs(server_pass_s=1.0, server_row_s=0.5).server)
    assert (seen[0, 0], seconds) == (6.0, 9.0)


def test_all_rows_wait_while_prompts_are_taken_in():
    """Prompts of 10 tokens, 0.1 s each, and 1 s a request: 2 x 2 s; 2 passes; 2 s for the third; its 3 passes."""
    server = costs(server_pass_s=1.0, server_prompt_token_s=0.1, server_request_s=1.0).server
    seconds, _, seen = decoded([owned(2, 2, 4, 3)], server)
    assert seen == pytest.approx({(0, 0): 6.0, (0, 1): 10.0, (0, 2): 11.0})
    assert seconds == pytest.approx(11.0)


def test_the_next_request_of_a_permit_comes_after_the_turnaround():
    """The second of two permits goes on meanwhile: alone from 2 s to 4.5 s; both until 6 s; then half a pass."""
    server = costs(server_pass_s=1.0, server_turnaround_s=2.5).server
    seconds, tally, seen = decoded([owned(2, 2, 6, 2)], server)
    assert seen == {(0, 0): 2.0, (0, 1): 6.0, (0, 2): 6.5}
    assert (seconds, tally.live) == (6.5, 10.0)


def test_each_rank_keeps_to_its_permits():
    """Rank 1 has one permit: its second request waits for its first, though rank 0 has two permits and one request."""
    _, _, seen = decoded([owned(2, 1), owned(1, 4, 4)], costs(server_pass_s=1.0).server)
    assert seen == {(0, 0): 1.0, (1, 0): 4.0, (1, 1): 8.0}


def test_servers_begin_in_proportion_and_take_what_waits():
    """Permits 1 and 3: four begin, one of them there; the fifth goes to whichever is free."""
    first, second = at_servers(list(enumerate(requests(1, 2, 3, 4, 5))), [1, 3])
    assert [[place for place, _ in one.first] for one in (first, second)] == [[1], [0, 2, 3]]
    assert [place for place, _ in first.waiting] == [4] and first.waiting is second.waiting


def test_drafts_make_fewer_passes_of_an_answer():
    server = costs(server_pass_s=1.0, server_tokens_per_pass=2.0).server
    assert decoded([owned(1, 5, 4)], server)[1].passes == 3 + 2


@given(LENGTHS, st.integers(1, 8))
def test_passes_are_those_of_list_scheduling_and_within_its_bound(lengths, permits):
    seconds, tally, seen = decoded([owned(permits, *lengths)], costs(server_pass_s=1.0).server)
    assert seconds == tally.passes == list_scheduling(lengths, permits)
    assert tally.live == sum(lengths) and len(seen) == len(lengths)
    least = max(*lengths, math.ceil(sum(lengths) / permits))
    bound = sum(lengths) / permits + max(lengths) * (1 - 1 / permits)
    assert least <= tally.passes <= bound + 1e-9 <= 2 * least + 1e-8


@given(LENGTHS, st.integers(1, 7))
def test_more_permits_of_equal_answers_never_take_longer(lengths, permits):
    server, alike = costs(server_pass_s=1.0).server, [max(lengths)] * len(lengths)
    assert decoded([owned(permits + 1, *alike)], server)[0] <= decoded([owned(permits, *alike)], server)[0]

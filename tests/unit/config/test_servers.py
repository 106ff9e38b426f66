"""Sums are preserved, shares are in proportion within one, no server's cap is exceeded."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_stage2ab.config.servers import interleaved, is_loopback, request_window, server_slots, split_requests
from ds_stage2ab.errors import ConfigError

WORLDS = range(1, 65)
DECODE = range(1, 17)


def test_the_shipped_topology():
    assert request_window(4, [6], 2) == 12
    assert server_slots(4, [6], 2) == [[12], [12]]
    assert split_requests(32, [4, 2]) == [range(21), range(21, 32)]


@given(st.lists(st.integers(0, 9), max_size=6))
def test_the_first_permits_are_everywhere_in_proportion(permits):
    dealt = interleaved(permits)
    assert [dealt.count(server) for server in range(len(permits))] == permits
    for first in range(len(dealt)):
        share = first / len(dealt)
        assert all(abs(dealt[:first].count(n) - share * count) <= 1 for n, count in enumerate(permits))


def test_remainders_go_on_where_the_server_before_ended():
    assert server_slots(1, [1, 1, 2], 3) == [[1, 0, 1], [0, 1, 0], [0, 0, 1]]


def test_an_infeasible_window_names_three_ways_out():
    with pytest.raises(ConfigError) as raised:
        request_window(1, [2, 1], 8)
    message = str(raised.value)
    assert "1 x 3 server replicas = 3 sequences at once, fewer than the 8 learner ranks" in message
    assert "decode_batch_size to 3 or more, start more server replicas, or use at most 3 learner ranks" in message


def test_without_a_replica_only_starting_one_helps():
    with pytest.raises(ConfigError, match="start at least one server replica"):
        request_window(4, [], 1)
    with pytest.raises(ConfigError, match="1 request and no server replica"):
        split_requests(1, [0, 0])
    assert split_requests(0, [0]) == [range(0)]


def check_world(decode: int, replicas: list[int], ranks: int) -> None:
    total = decode * sum(replicas)
    if total < ranks:
        with pytest.raises(ConfigError):
            request_window(decode, replicas, ranks)
    else:
        assert request_window(decode, replicas, ranks) == total // ranks
    slots = server_slots(decode, replicas, ranks)
    assert [sum(column) for column in zip(*slots, strict=True)] == [decode * share for share in replicas]
    assert {sum(row) for row in slots} <= {total // ranks, -(-total // ranks)}


@pytest.mark.parametrize("ranks", WORLDS)
def test_every_number_of_learners_and_replicas(ranks):
    for decode in DECODE:
        for replicas in range(65):
            check_world(decode, [replicas], ranks)


@given(st.sampled_from(DECODE), st.lists(st.integers(0, 8), min_size=1, max_size=8), st.sampled_from(WORLDS))
def test_permits_are_dealt_completely_and_evenly(decode, replicas, ranks):
    check_world(decode, replicas, ranks)


@given(st.integers(0, 512), st.lists(st.integers(0, 64), min_size=1, max_size=8).filter(any))
def test_requests_are_split_in_order_and_in_proportion(n, replicas):
    parts = split_requests(n, replicas)
    assert [i for part in parts for i in part] == list(range(n))
    assert all(left.stop == right.start for left, right in pairwise(parts))
    assert all(
        abs(len(part) * sum(replicas) - n * share) < sum(replicas) for part, share in zip(parts, replicas, strict=True)
    )
    assert all(len(part) == 0 for part, share in zip(parts, replicas, strict=True) if share == 0)


@pytest.mark.parametrize(
    ("base_url", "is_so"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://127.3.2.1/", True),
        ("http://localhost:8000", True),
        ("https://[::1]:8000", True),
        ("http://0.0.0.0:8000", False),
        ("http://10.0.0.7:8000", False),
        ("http://[2001:db8::1]:8000", False),
        ("http://node7:8000", False),
        ("http://localhost.example.org:8000", False),
        ("http://127.0.0.1.example.org:8000", False),
    ],
)
def test_an_address_of_this_machine_alone(base_url, is_so):
    assert is_loopback(base_url) == is_so

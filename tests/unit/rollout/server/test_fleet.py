"""The health of servers as plain data: what is lost, when it is asked again, what is said."""

import pickle

import pytest

from ds_stage2ab.config.sections import ServerSection
from ds_stage2ab.errors import ServerFault
from ds_stage2ab.rollout.server.fleet import (
    LONGEST_PAUSE_S,
    Fleet,
    Member,
    due,
    joined,
    last_fault,
    named,
    pause_s,
    permits_of,
    reported,
    steadied,
    without,
)


def section(name: str) -> ServerSection:
    return ServerSection(base_url=f"http://{name}:8000/", group_port=None, tensor_parallel_size=1)


def url(name: str) -> str:
    return f"http://{name}:8000"


def fault(name: str, why: str = "it is gone") -> dict[str, ServerFault]:
    return {url(name): ServerFault(why, where=url(name), fix="look")}


def serving(fleet: Fleet) -> str:
    return "".join(member.server.base_url[7] for member in fleet.serving)


@pytest.fixture
def fleet() -> Fleet:
    return Fleet(members=tuple(Member(server=section(name), replicas=2, serves=True) for name in "abc"))


def test_a_server_that_fails_is_lost_and_named(fleet):
    left = without(fleet, fault("b"), now=100.0)
    assert (serving(fleet), serving(left)) == ("abc", "ac")
    assert (left.lost, left.back) == (1, 0)
    (told,) = left.told
    assert told.startswith(f"rollout server {url('b')} is lost: it is gone; its requests go to the other 2; ")
    assert "asked again in 1 s" in told
    assert [len(due(left, now)) for now in (100.0, 100.9, 101.0)] == [0, 0, 1]


def test_pauses_grow_while_it_is_asked_in_vain_and_only_the_loss_is_told(fleet):
    now, pauses = 0.0, []
    for _ in range(12):
        fleet = without(fleet, fault("a"), now)
        pauses.append(fleet.members[0].ask_at - now)
        now = fleet.members[0].ask_at
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, *[LONGEST_PAUSE_S] * 3]
    assert (fleet.lost, len(fleet.told)) == (1, 1)
    assert pause_s(10_000) == LONGEST_PAUSE_S


def test_where_none_is_left_asking_in_vain_does_not_count(fleet):
    """All are asked again and again then; when one comes back, the others need not wait long."""
    fleet = without(fleet, {**fault("a"), **fault("b"), **fault("c")}, 0.0, counts=False)
    for now in range(1, 20):
        fleet = without(fleet, fault("b"), float(now), counts=False)
    assert [(one.failures, one.ask_at) for one in fleet.members] == [(1, 1.0), (1, 20.0), (1, 1.0)]


def test_a_server_that_comes_back_is_forgiven_when_it_has_served(fleet):
    fleet = without(without(fleet, fault("a"), 0.0), fault("a"), 1.0)
    fleet = joined(fleet, {url("a"): 3, url("b"): 2}, "start/5")
    assert (serving(fleet), fleet.members[0].replicas, fleet.back) == ("abc", 3, 1)
    assert "is back: it has passed the handshake, taken the weights start/5" in fleet.told[-1]
    again = without(fleet, fault("a"), 10.0)
    assert again.members[0].ask_at == 10.0 + 4, "it has not served since"
    assert without(steadied(fleet), fault("a"), 10.0).members[0].ask_at == 10.0 + 1


def test_what_is_reported_is_reported_once(fleet):
    lost = without(fleet, fault("a"), 0.0)
    between = reported(lost, counts=False)  # behind an evaluation: the next step counts it
    assert (between.lost, between.told) == (1, ())
    left = reported(lost)
    assert (left.lost, left.back, left.told, serving(left)) == (0, 0, (), "bc")


def test_none_is_left(fleet):
    faults = {address: one for name in "cab" for address, one in fault(name, f"{name} is gone").items()}
    left = without(fleet, faults, 0.0)
    assert not left.serving and left.lost == 3
    assert all("no other is left" in told for told in left.told)
    assert last_fault(left).why == "a is gone"
    assert due(left, 0.0, everyone=True) == left.members


def test_servers_are_named_again(fleet):
    """One stays, a lost one stays lost, one goes, a new one is asked at once; another port is another server."""
    fleet = without(fleet, fault("b"), 50.0)
    other = ServerSection(base_url=section("c").base_url, group_port=5000, tensor_parallel_size=1)
    fleet = named(reported(fleet), [section("d"), section("a"), section("b"), other])
    assert serving(fleet) == "a" and fleet.lost == 1
    assert fleet.told == (f"rollout server {url('c')} is no longer named, and gets no more requests",)
    assert [member.server for member in due(fleet, 50.0)] == [section("d"), other]
    new = joined(fleet, {url("d"): 1}, "start/1")
    assert "is new: " in new.told[-1] and new.back == 1


def test_it_travels_between_ranks(fleet):
    left = without(fleet, fault("b"), 1.0)
    there = pickle.loads(pickle.dumps(left))
    assert str(there.members[1].fault) == str(left.members[1].fault) and serving(there) == "ac"


# --- the requests that a rank divides ---------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("replicas", [[1], [2, 1], [1, 1, 1]])
def test_every_rank_has_a_permit_whatever_is_left(ranks, replicas):
    """One sequence at once on each replica: where ranks are more than that, the servers let them wait."""
    rows = [permits_of(rank, ranks, replicas, 1) for rank in range(ranks)]
    assert all(sum(row) >= 1 for row in rows)
    dealt = [sum(column) for column in zip(*rows, strict=True)]
    assert sum(dealt) == max(ranks, sum(replicas))
    assert all(sum(permits_of(rank, ranks, [4, 4], 4)) in (32 // ranks, 32 // ranks + 1) for rank in range(ranks))


def test_no_permit_without_a_server():
    assert permits_of(0, 2, [], 4) == []

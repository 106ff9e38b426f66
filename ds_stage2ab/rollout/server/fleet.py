"""The health of the rollout servers as plain data: which serve, which are lost, and when those are asked again.

Nothing here calls a server or reads a clock: `now` is a number of seconds, and every function returns a new fleet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ds_stage2ab.config.sections import ServerSection
from ds_stage2ab.config.servers import server_slots
from ds_stage2ab.errors import ServerFault

FIRST_PAUSE_S = 1.0
"""Before a lost server is asked again; doubled by each failure in a row."""
LONGEST_PAUSE_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One server that the run knows."""

    server: ServerSection
    replicas: int = 0
    # as found in its last handshake
    serves: bool = False
    # it has proven to compute with the learner's weights, and gets requests
    failures: int = 0
    # in a row: when it was lost, and each time that it was asked in vain
    ask_at: float = 0.0
    # seconds; when it is asked next, if it does not serve
    fault: ServerFault | None = None
    # the last; None: it has none yet

    @property
    def url(self) -> str:
        return self.server.base_url.rstrip("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """All servers, and what has changed since that was last reported."""

    members: tuple[Member, ...]
    lost: int = 0
    # servers that ceased to serve
    back: int = 0
    # servers that began to serve
    told: tuple[str, ...] = ()
    # warnings

    @property
    def serving(self) -> tuple[Member, ...]:
        return tuple(member for member in self.members if member.serves)


def pause_s(failures: int) -> float:
    """Seconds until a server is asked again that has failed so often in a row."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failures - 1, 30))


def due(fleet: Fleet, now: float, *, everyone: bool = False) -> tuple[Member, ...]:
    """The servers to ask now whether they can serve; `everyone`: all that do not."""
    return tuple(one for one in fleet.members if not one.serves and (everyone or one.ask_at <= now))


def without(fleet: Fleet, faults: Mapping[str, ServerFault], now: float, *, counts: bool = True) -> Fleet:
    """The fleet when these servers have failed, by address: those that served are lost, the others wait longer.

    Args:
        counts: whether the others wait longer; where none is left all are asked, however often they failed.
    """
    members = tuple(
        _failed(one, faults[one.url], now, counts=counts or one.serves) if one.url in faults else one
        for one in fleet.members
    )
    lost = [after for before, after in zip(fleet.members, members, strict=True) if before.serves and not after.serves]
    left = sum(one.serves for one in members)
    others = f"its requests go to the other {left}" if left > 1 else "its requests go to the other one"
    told = tuple(
        f"rollout server {one.url} is lost: {one.fault.why}; {others if left else 'no other is left'}; it is asked"
        f" again in {pause_s(one.failures):g} s, and serves when it has proven the current weights"
        for one in lost
    )
    return replace(fleet, members=members, lost=fleet.lost + len(lost), told=fleet.told + told)


def _failed(member: Member, fault: ServerFault, now: float, *, counts: bool) -> Member:
    failures = max(1, member.failures + counts)
    return replace(member, serves=False, failures=failures, ask_at=now + pause_s(failures), fault=fault)


def joined(fleet: Fleet, replicas: Mapping[str, int], version: str) -> Fleet:
    """The fleet when these servers, by address, have proven that they have the weights of this version."""
    new = [one for one in fleet.members if one.url in replicas and not one.serves]
    members = tuple(
        replace(one, serves=True, replicas=replicas[one.url]) if one.url in replicas else one for one in fleet.members
    )
    told = tuple(
        f"rollout server {one.url} {'is back' if one.fault else 'is new'}: it has passed the handshake, taken the"
        f" weights {version} and computes with them"
        for one in new
    )
    return replace(fleet, members=members, back=fleet.back + len(new), told=fleet.told + told)


def steadied(fleet: Fleet) -> Fleet:
    """The fleet behind rollouts: what still serves has its failures forgiven."""
    return replace(fleet, members=tuple(replace(one, failures=0) if one.serves else one for one in fleet.members))


def named(fleet: Fleet, servers: Sequence[ServerSection]) -> Fleet:
    """The fleet of these servers: known ones stay as they are, others are asked at once, the rest is let go."""
    known = {one.server: one for one in fleet.members}
    members = tuple(known.get(server, Member(server=server)) for server in servers)
    gone = [one for one in fleet.members if one.server not in servers]
    told = tuple(f"rollout server {one.url} is no longer named, and gets no more requests" for one in gone)
    return replace(fleet, members=members, lost=fleet.lost + sum(one.serves for one in gone), told=fleet.told + told)


def warned(fleet: Fleet, words: str) -> Fleet:
    """The fleet with a further warning."""
    return replace(fleet, told=(*fleet.told, words))


def reported(fleet: Fleet, *, counts: bool = True) -> Fleet:
    """The fleet when its warnings have been given out and, if `counts`, its changes counted in a step's metrics."""
    return replace(fleet, told=(), **({"lost": 0, "back": 0} if counts else {}))


def last_fault(fleet: Fleet) -> ServerFault:
    """Why a fleet in which none serves does not: the fault of the first server that has one."""
    return next(one.fault for one in fleet.members if one.fault is not None)


def permits_of(rank: int, ranks: int, replicas: Sequence[int], decode_batch_size: int) -> list[int]:
    """Requests that a rank may have in flight at each server.

    As `server_slots` deals them. Where few servers are left for many ranks, a rank that would have none gets one: the
    server lets it wait.
    """
    dealt = server_slots(decode_batch_size, list(replicas), ranks)[rank]
    if not any(dealt) and dealt:
        dealt[rank % len(dealt)] = 1
    return dealt

"""First-come list scheduling of requests onto the permits of one server, pass by pass.

Invariants:
- no rank has more requests at a server than permits, and a permit takes its rank's next request when it is free,
  whichever server it is of
- a request is in as many passes as its answer takes, and each pass takes `pass_s + row_s * rows`
- without turnaround the passes of one rank's requests are those of list scheduling: at most the bound of Graham (1969)
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ds_stage2ab.config.servers import interleaved
from ds_stage2ab.simulation.costs import Request, ServerCosts
from ds_stage2ab.simulation.machine import Process


@dataclass(slots=True)
class Tally:
    """What a server did."""

    passes: float = 0.0
    live: float = 0.0
    # rows of all passes


@dataclass(frozen=True, slots=True)
class Owned:
    """The requests of one rank at a server, each with its place among all of the rank's."""

    first: Sequence[tuple[int, Request]]
    # of its permits, one for each
    waiting: deque[tuple[int, Request]]
    # that a permit takes which is free, whichever server it is of


def at_servers(requests: Sequence[tuple[int, Request]], permits: Sequence[int]) -> list[Owned]:
    """A rank's requests, by server."""
    waiting = deque(requests)
    first: list[list[tuple[int, Request]]] = [[] for _ in permits]
    for server in interleaved(permits)[: len(requests)]:
        first[server].append(waiting.popleft())
    return [Owned(mine, waiting) for mine in first]


def decode(
    owners: Sequence[Owned], costs: ServerCosts, answered: Callable[[int, int], None], tally: Tally
) -> Process:
    """The work of a server.

    Args:
        owners: by rank.
        answered: called with (rank, place) when an answer is there.
    """
    coming: list[tuple[float, int, int, int]] = []
    # (moment, order, rank, prompt or place): requests on their way
    rows: list[tuple[float, int, int, int]] = []
    # (pass after which it ends, order, rank, place)
    order, now = 0, 0.0

    def send(rank: int, request: tuple[int, Request], moment: float) -> None:
        nonlocal order
        order += 1
        heapq.heappush(coming, (moment, order, rank, request))

    for rank, one in enumerate(owners):
        for request in one.first:
            send(rank, request, 0.0)
    while rows or coming:
        if coming and coming[0][0] <= now:
            stall = 0.0
            while coming and coming[0][0] <= now:
                _, number, rank, (place, request) = heapq.heappop(coming)
                stall += costs.request_s + costs.prompt_token_s * request.prompt
                passes = math.ceil(request.answer / costs.tokens_per_pass)
                heapq.heappush(rows, (tally.passes + passes, number, rank, place))
            yield stall
            now += stall
            continue
        end = rows[0][0] if rows else math.inf
        takes = costs.pass_s + costs.row_s * len(rows)
        # a pass of no rows takes nothing: it waits for the next request
        until = now + (end - tally.passes) * takes if rows else math.inf
        if coming and coming[0][0] < until:
            until = coming[0][0]
            end = tally.passes + ((until - now) / takes if rows else 0.0)
        yield until - now
        tally.live += (end - tally.passes) * len(rows)
        now, tally.passes = until, end
        while rows and rows[0][0] <= end:
            _, _, rank, place = heapq.heappop(rows)
            answered(rank, place)
            if owners[rank].waiting:
                send(rank, owners[rank].waiting.popleft(), now + costs.turnaround_s)

"""First-come list scheduling of requests onto the permits of one server, pass by pass.

Invariants:
- no rank has more requests at a server than permits, and a permit takes its rank's next request when it is free
- a request is in as many passes as its answer takes, and each pass takes `pass_s + row_s * rows`
- without turnaround the passes of one rank's requests are those of list scheduling: at most the bound of Graham (1969)
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    """The requests of one rank at a server."""

    permits: int
    requests: Sequence[tuple[int, Request]]
    # with the place of each among the rank's


def decode(
    owners: Sequence[Owned], costs: ServerCosts, answered: Callable[[int, int], None], tally: Tally
) -> Process:
    """The work of a server.

    Args:
        owners: by rank.
        answered: called with (rank, place) when an answer is there.
    """
    waiting = [deque(one.requests) for one in owners]
    coming: list[tuple[float, int, int, int]] = []
    # (moment, order, rank, prompt or place): requests on their way
    rows: list[tuple[float, int, int, int]] = []
    # (pass after which it ends, order, rank, place)
    order, now = 0, 0.0

    def send(rank: int, moment: float) -> None:
        nonlocal order
        if waiting[rank]:
            order += 1
            heapq.heappush(coming, (moment, order, rank, waiting[rank].popleft()))

    for rank, one in enumerate(owners):
        for _ in range(one.permits):
            send(rank, 0.0)
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
            send(rank, now + costs.turnaround_s)

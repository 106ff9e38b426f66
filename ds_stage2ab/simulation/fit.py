"""What decoding takes, fitted to what was measured: sums of costs that are not negative."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from ds_stage2ab.simulation.costs import ServerCosts

Rows = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One recorded request of a server."""

    rank: int
    passes: int
    # of decoding: tokens of the answer, its stop among them
    prompt: int
    # tokens
    seconds: float
    # from its sending to its answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """Measurements of one B step."""

    rows: Rows
    seconds: Sequence[float]
    # [n, 4] and [n]: passes, rows of them, prompt tokens and requests taken in meanwhile; what they took together
    turnaround_s: float | None
    # from an answer to the next request of a permit; None: not known
    tokens_per_pass: float


def fitted(rows: Rows, seconds: Sequence[float]) -> list[float]:
    """Costs c >= 0 with seconds ~ rows c: least squares (Lawson and Hanson 1974), then scaled so that half of the
    measurements are above and half below: a busy machine makes some of them long, and none short.

    Args:
        rows: [n, k] how often each cost occurs in a measurement.
        seconds: [n]
    """
    counts = np.asarray(rows, dtype=float)
    sizes = np.maximum(counts.max(axis=0), 1e-12)
    costs = nnls(counts / sizes, np.asarray(seconds, dtype=float))[0] / sizes
    ratios = [taken / one for taken, one in zip(seconds, counts @ costs, strict=True) if one > 0]
    scale = statistics.median(ratios) if ratios else 1.0
    return [float(cost) * scale for cost in costs]


def server_costs(decoded: Sequence[Decoded]) -> ServerCosts:
    """Of all measurements together."""
    rows = [row for one in decoded for row in one.rows]
    seconds = [taken for one in decoded for taken in one.seconds]
    pass_s, row_s, prompt_token_s, request_s = fitted(rows, seconds)
    turnarounds = [one.turnaround_s for one in decoded if one.turnaround_s is not None]
    return ServerCosts(
        pass_s=pass_s,
        row_s=row_s,
        prompt_token_s=prompt_token_s,
        request_s=request_s,
        turnaround_s=statistics.median(turnarounds) if turnarounds else 0.0,
        tokens_per_pass=statistics.median(one.tokens_per_pass for one in decoded),
    )


def at_server(parts: Sequence[tuple[Sequence[Asked], Sequence[int]]], busy_s: float | None) -> Decoded:
    """What the servers did in one step.

    Args:
        parts: of each server the requests, each rank's in order, and the permits by rank.
        busy_s: from the first request to the last answer, the mean of all servers; None: not known.
    """
    rows, seconds, ends, turns = [], [], [], []
    for asked, permits in parts:
        spans = intervals(asked, permits)
        rows += request_rows(asked, spans)
        seconds += [one.seconds for one in asked]
        ends.append(float(spans[:, 1].max()) if len(spans) else 0.0)
        turns.append(max(0.0, len(asked) / sum(permits) - 1))
    between, count = (busy_s or 0.0) - statistics.mean(ends), statistics.mean(turns)
    known = busy_s is not None and count > 0
    return Decoded(
        rows=rows, seconds=seconds, turnaround_s=max(0.0, between / count) if known else None, tokens_per_pass=1.0
    )


def decoded_alone(metrics: Mapping[str, float], decode_batch_size: int, share: float) -> Decoded:
    """What a learner did in one step.

    Args:
        share: requests of a rank.
    """
    passes = metrics["rollout/passes"]
    live = metrics["rollout/live_slots"] * passes * decode_batch_size
    return Decoded(
        rows=[[passes, live, 0.0, share]],
        seconds=[metrics["time/rollout_s"]],
        turnaround_s=None,
        tokens_per_pass=max(1.0, metrics["rollout/tokens_per_pass"]),
    )


def intervals(asked: Sequence[Asked], permits: Sequence[int]) -> NDArray[np.float64]:
    """[n, 2] when each request of a server began and ended: a permit that is free takes its rank's next one."""
    free = [[0.0] * max(1, count) for count in permits]
    spans = []
    for one in asked:
        begun = heapq.heappop(free[one.rank])
        spans.append((begun, begun + one.seconds))
        heapq.heappush(free[one.rank], begun + one.seconds)
    return np.array(spans).reshape(-1, 2)


def request_rows(asked: Sequence[Asked], spans: NDArray[np.float64]) -> list[list[float]]:
    """[n, 4] what the seconds of each request are made of: passes, their rows, prompt tokens and requests that were
    taken in meanwhile, its own among them.

    Args:
        spans: [n, 2] when each began and ended.
    """
    begun, ended = spans[:, 0], spans[:, 1]
    overlap_nn = np.minimum(ended[:, None], ended) - np.maximum(begun[:, None], begun)
    rows_n = np.maximum(overlap_nn, 0.0).sum(axis=1) / np.maximum(ended - begun, 1e-9)
    is_taken_in_nn = (begun >= begun[:, None]) & (begun < ended[:, None])
    passes_n = np.array([one.passes for one in asked], dtype=float)
    prompts_n = is_taken_in_nn @ np.array([one.prompt for one in asked], dtype=float)
    return np.stack([passes_n, passes_n * rows_n, prompts_n, is_taken_in_nn.sum(axis=1)], axis=1).tolist()

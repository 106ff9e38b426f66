"""Calls to several servers at the same time: one that hangs costs its own time-outs, and no other waits for it."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

R = TypeVar("R")


def at_once(calls: Sequence[Callable[[], R]], *, within_s: float) -> list[R]:
    """What each returns, in order; of several that raise, the first in that order is told.

    Args:
        calls: each ends by time-outs of its own.
        within_s: longer than any of them can take.
    """
    pool = ThreadPoolExecutor(max_workers=len(calls), thread_name_prefix="servers")
    running = [pool.submit(call) for call in calls]
    pool.shutdown(wait=False)
    wait(running, timeout=within_s)
    return [one.result(timeout=0) for one in running]

"""Concurrent calls to several servers: one that hangs reaches its own time-out, and does not delay the others."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

R = TypeVar("R")


def at_once(calls: Sequence[Callable[[], R]], *, within_s: float) -> list[R]:
    """The results, in order; of several errors the first in that order is raised.

    Args:
        calls: each has its own time-out.
        within_s: longer than any of them can take.
    """
    pool = ThreadPoolExecutor(max_workers=len(calls), thread_name_prefix="servers")
    running = [pool.submit(call) for call in calls]
    pool.shutdown(wait=False)
    wait(running, timeout=within_s)
    return [one.result(timeout=0) for one in running]

"""Concurrent calls to several servers: one that hangs reaches its own time-out, and does not delay the others."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

R = TypeVar("R")


def begun(calls: Sequence[Callable[[], R]], *, within_s: float) -> Callable[[], list[R]]:
    """Start the calls; what is returned waits for the results, in order, and raises the first error in that order.

    Args:
        calls: each has its own time-out.
        within_s: longer than any of them can take.
    """
    pool = ThreadPoolExecutor(max_workers=len(calls), thread_name_prefix="servers")
    running = [pool.submit(call) for call in calls]
    pool.shutdown(wait=False)

    def results() -> list[R]:
        wait(running, timeout=within_s)
        return [one.result(timeout=0) for one in running]

    return results


def at_once(calls: Sequence[Callable[[], R]], *, within_s: float) -> list[R]:
    """The results of `begun`."""
    return begun(calls, within_s=within_s)()

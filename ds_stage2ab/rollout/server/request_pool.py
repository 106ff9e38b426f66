"""A rank's requests to several servers: at each server as many in flight as this rank has permits, never more.

Each permit has a thread that takes the next request of its server as soon as it has an answer. When a server fails a
request for good, its remaining requests go to the other servers, which keep their own permits. When none is left, the
batch ends.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

from ds_stage2ab.errors import NoServerLeft, ServerFault

R = TypeVar("R")

LOOK_S = 0.5
"""How long a thread waits before it looks again, for a request or whether the run shall stop."""

Ask = Callable[[int, int, int], R]
"""(request, server, attempt) -> its result; may raise `ServerLost`, or any other error, which ends the batch."""


class ServerLost(Exception):
    """This server cannot answer; another may."""


class Interrupted(Exception):
    """The batch was ended from outside."""


class RequestPool(Generic[R]):
    """One batch of requests; `results` yields them in order.

    Args:
        shares: the requests of each server, ascending.
        permits: how many requests of this rank each server may have in flight.
        ask: sends one request.
        avoided: servers that get none.
    """

    def __init__(
        self,
        shares: Sequence[range],
        permits: Sequence[int],
        ask: Ask,
        *,
        avoided: Collection[int] = (),
    ) -> None:
        self.ask = ask
        self.permits = list(permits)
        self.waiting = [deque((request, 1) for request in share) for share in shares]
        self.futures: list[Future] = [Future() for share in shares for _ in share]
        self.open = len(self.futures)
        self.lost: set[int] = set(avoided)
        # servers that have failed a request for good
        self.causes: dict[int, BaseException] = {}
        # why each server was lost that was
        self.begun = time.monotonic()
        self.busy: dict[int, float] = {}
        # seconds from the beginning to each server's last answer
        self.changed = threading.Condition()
        for server, count in enumerate(self.permits):
            if server not in self.lost:
                self._open_places(server, count)

    def _open_places(self, server: int, count: int) -> None:
        pool = ThreadPoolExecutor(max_workers=max(1, count), thread_name_prefix="rollouts")
        for _ in range(count):
            pool.submit(self._place, server).add_done_callback(self._on_exit)
        pool.shutdown(wait=False)

    def results(self, *, within_s: float, check: Callable[[], None] = lambda: None) -> Iterator[R]:
        """The results in order, each as soon as it is there.

        Args:
            within_s: longest wait for one; no call of `ask` takes longer.
            check: called now and then while a result is waited for; what it raises ends the batch.

        Raises:
            NoServerLeft: all servers have failed.
            ServerFault: no server has answered a request by then.
            Interrupted: after `interrupt`, where a result was not there yet.
        """
        for request, future in enumerate(self.futures):
            deadline = time.monotonic() + within_s
            try:
                while not wait([future], timeout=LOOK_S).done:
                    self._check(check)
                    if time.monotonic() > deadline:
                        self._end(_overdue(request, len(self.futures), within_s))
            except KeyboardInterrupt as error:
                self._end(error)
                raise
            yield future.result(timeout=0)

    def _check(self, check: Callable[[], None]) -> None:
        try:
            check()
        except BaseException as error:  # whatever it is, no request of the batch goes on
            self._end(error)
            raise

    def _place(self, server: int) -> None:
        while (taken := self._take(server)) is not None:
            request, attempt = taken
            try:
                result = self.ask(request, server, attempt)
            except ServerLost as error:
                self._give_up(server, request, attempt, error)
            else:
                with self.changed:
                    if not self.futures[request].done():
                        self.futures[request].set_result(result)
                        self.open -= 1
                        self.busy[server] = time.monotonic() - self.begun
                    self.changed.notify_all()

    def _on_exit(self, thread: Future) -> None:
        """Any error other than a lost server cancels the batch; it is raised where the result is awaited."""
        error = thread.exception(timeout=0)
        if error is not None:
            self._end(error)

    def _take(self, server: int) -> tuple[int, int] | None:
        """The next request of this server; None when there will be none any more."""
        with self.changed:
            while self.open > 0 and server not in self.lost:
                if self.waiting[server]:
                    return self.waiting[server].popleft()
                self.changed.wait(timeout=LOOK_S)
            return None

    def interrupt(self) -> None:
        """End the batch; results that are there can still be read."""
        self._end(Interrupted())

    def _give_up(self, server: int, request: int, attempt: int, error: ServerLost) -> None:
        """Move this server's remaining requests to the others; without any the batch ends with the cause.

        A rank without a permit at those that are left takes one of each: they let it wait.
        """
        cause = error.__cause__ or error
        with self.changed:
            if self.open <= 0:
                return
            self.lost.add(server)
            self.causes[server] = cause
            rest = [(request, attempt + 1), *self.waiting[server]]
            self.waiting[server].clear()
            left = [index for index in range(len(self.permits)) if index not in self.lost]
            others = [index for index in left if self.permits[index]]
            borrowed = [] if others else left
            for index in borrowed:
                self.permits[index] = 1
            for place, one in enumerate(rest if left else ()):
                self.waiting[(others or left)[place % len(others or left)]].append(one)
            self.changed.notify_all()
        for index in borrowed:
            self._open_places(index, 1)
        if not left:
            self._end(_none_left(cause))

    def _end(self, error: BaseException) -> None:
        with self.changed:
            self.open = 0
            for queue in self.waiting:
                queue.clear()
            for future in self.futures:
                if not future.done():
                    future.set_exception(error)
            self.changed.notify_all()


def _none_left(cause: BaseException) -> BaseException:
    if not isinstance(cause, ServerFault):
        return cause
    lost = NoServerLeft(cause.why, where=cause.where, fix=cause.fix)
    lost.__cause__ = cause
    return lost


def _overdue(request: int, count: int, within_s: float) -> ServerFault:
    return ServerFault(
        f"request {request + 1} of {count} has no answer after {within_s:.0f} s, all tries at all servers together",
        fix="look at the servers' own logs for the one that takes requests and answers none; start it again",
    )

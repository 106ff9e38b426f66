"""A rank's requests to several servers: at each server as many in flight as this rank has permits, never more.

Each permit has a thread that takes the next request of the batch as soon as it has an answer: none is free while a
request waits, and answers come about in their order. When a server fails a request for good, the other servers take
that one next, within their own permits. When none is left, the batch ends.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

from ds_stage2ab.config.servers import interleaved
from ds_stage2ab.errors import NoServerLeft, ServerFault

R = TypeVar("R")

LOOK_S = 0.5
"""How long a thread waits before it looks again, for a request or whether the run shall stop."""

Taken = tuple[int, int]
"""(request, servers that it was sent to, the next one counted)."""
Ask = Callable[[int, int, int], R]
"""(request, server, attempt) -> its result; may raise `ServerLost`, or any other error, which ends the batch."""


class ServerLost(Exception):
    """This server cannot answer; another may."""


class Interrupted(Exception):
    """The batch was ended from outside."""


class RequestPool(Generic[R]):
    """One batch of requests; `results` yields them in order.

    Args:
        count: of the requests.
        permits: how many requests of this rank each server may have in flight.
        ask: sends one request.
        avoided: servers that get none.
    """

    def __init__(
        self,
        count: int,
        permits: Sequence[int],
        ask: Ask,
        *,
        avoided: Collection[int] = (),
    ) -> None:
        self.ask = ask
        self.permits = list(permits)
        self.waiting: deque[Taken] = deque((request, 1) for request in range(count))
        self.futures: list[Future] = [Future() for _ in range(count)]
        self.open = len(self.futures)
        self.lost: set[int] = set(avoided)
        # servers that have failed a request for good
        self.causes: dict[int, BaseException] = {}
        # why each server was lost that was
        self.begun = time.monotonic()
        self.busy: dict[int, float] = {}
        # seconds from the beginning to each server's last answer
        self.changed = threading.Condition()
        first: dict[int, list[Taken | None]] = {}
        for server in interleaved([0 if one in self.lost else count for one, count in enumerate(permits)]):
            first.setdefault(server, []).append(self.waiting.popleft() if self.waiting else None)
        for server, mine in first.items():
            self._open_places(server, mine)

    def _open_places(self, server: int, first: Sequence[Taken | None]) -> None:
        pool = ThreadPoolExecutor(max_workers=len(first), thread_name_prefix="rollouts")
        for one in first:
            pool.submit(self._place, server, one).add_done_callback(self._on_exit)
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

    def _place(self, server: int, first: Taken | None) -> None:
        taken = first if first and self.open else self._take(server)
        while taken is not None:
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
            taken = self._take(server)

    def _on_exit(self, thread: Future) -> None:
        """Any error other than a lost server cancels the batch; it is raised where the result is awaited."""
        error = thread.exception(timeout=0)
        if error is not None:
            self._end(error)

    def _take(self, server: int) -> Taken | None:
        """The next request; None when there will be none for this server any more."""
        with self.changed:
            while self.open > 0 and server not in self.lost:
                if self.waiting:
                    return self.waiting.popleft()
                self.changed.wait(timeout=LOOK_S)
            return None

    def interrupt(self) -> None:
        """End the batch; results that are there can still be read."""
        self._end(Interrupted())

    def _give_up(self, server: int, request: int, attempt: int, error: ServerLost) -> None:
        """Leave this request to the other servers; without any the batch ends with the cause.

        A rank without a permit at those that are left takes one of each: they let it wait.
        """
        cause = error.__cause__ or error
        with self.changed:
            if self.open <= 0:
                return
            self.lost.add(server)
            self.causes[server] = cause
            self.waiting.appendleft((request, attempt + 1))
            left = [index for index in range(len(self.permits)) if index not in self.lost]
            borrowed = [] if any(self.permits[index] for index in left) else left
            for index in borrowed:
                self.permits[index] = 1
            self.changed.notify_all()
        for index in borrowed:
            self._open_places(index, [None])
        if not left:
            self._end(_none_left(cause))

    def _end(self, error: BaseException) -> None:
        with self.changed:
            self.open = 0
            self.waiting.clear()
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

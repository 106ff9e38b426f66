"""The learner ranks: the number of this one, and the few things that all ranks do together.

Every method of `World` but `set_status` is a collective: all ranks call it, in the same order, or none does. They use a
Gloo group of their own beside the training group (`runtime/control.py`). When a collective fails because a rank has
died or hangs, the error lists what the missing ranks were doing.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar

import torch
import torch.distributed as dist

from ds_stage2ab.errors import LAST_QUESTIONS_S, LocalFault, LostRanks, Stage2Error, Stopped
from ds_stage2ab.runtime.control import ControlGroup
from ds_stage2ab.runtime.memory import is_out_of_memory
from ds_stage2ab.runtime.stop import StopRequest

T = TypeVar("T")

WAITING = "waiting for the others"
ASK_TIMEOUT = timedelta(seconds=LAST_QUESTIONS_S)
"""Time-out for reading the other ranks' status."""
MEET_TIMEOUT = timedelta(seconds=30)
"""Time-out for a connection to the store on rank 0, which is already open."""
MAX_NAMED = 8
"""Most ranks whose status a message lists."""
LOST_SIGNS = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "timeout", "broken pipe")
"""In the texts of a RuntimeError from a collective whose peer is gone."""


def fill_launcher_variables() -> None:
    """Set the launcher's variables for a single rank; a launcher's own win."""
    if "RANK" in os.environ:
        return
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(alone, MASTER_PORT=str(_free_port("127.0.0.1")))


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


class World:
    """The ranks of the default process group, which is there already.

    Args:
        device: where this rank trains ("cpu", "cuda:<local rank>"); what is agreed on lies on the CPU.
        stop: what every agreement of the ranks looks at; None: nothing stops them.
    """

    def __init__(self, device: str, stop: StopRequest | None = None) -> None:
        self.device = device
        self.stop = stop
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.now = "the start"
        self._notes: dist.TCPStore | None = None
        self._control: ControlGroup | None = None
        self._finishing = False
        if self.size > 1:
            with self.collective():
                self._control = ControlGroup()
            self._open_notes()
            self.set_status(self.now)

    def _open_notes(self) -> None:
        """The store of the ranks' status, on rank 0 and outside the process group: readable when that has failed."""
        first, host, server = self.rank == 0, os.environ["MASTER_ADDR"], None
        if first:
            server = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
        port = self.broadcast_object(server.port if first else 0)
        with self.collective():
            client = dist.TCPStore(host, port, is_master=False, timeout=MEET_TIMEOUT)
        self._notes = server or client
        self._notes.set_timeout(ASK_TIMEOUT)
        if self.stop is not None:
            with self.collective():
                watched = dist.TCPStore(host, port, is_master=False, timeout=MEET_TIMEOUT)
            mine = socket.gethostname()
            ranks = enumerate(self.gather((mine, os.getpid())))
            neighbours = tuple(pid for rank, (host, pid) in ranks if host == mine and rank != self.rank)
            self.stop.join(self._notes, watched, neighbours)

    def set_status(self, what: str) -> None:
        """Publish what this rank is doing, for the other ranks to read if it dies or hangs."""
        self.now = what
        if self._notes is not None:
            with suppress(RuntimeError):  # rank 0 and its store are gone: the next collective raises
                self._notes.set(str(self.rank), what)

    def all_reduce_max(self, *values: int) -> list[int]:
        """Largest of each value over all ranks."""
        if self._control is None:
            return list(values)
        box = torch.tensor(values, dtype=torch.long)
        with self._waiting():
            self._control.all_reduce(box, dist.ReduceOp.MAX)
        return box.tolist()

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Element-wise sum over all ranks, float64 in and out, on the CPU."""
        total = values.to("cpu", dtype=torch.float64, copy=True)
        if self._control is not None:
            with self._waiting():
                self._control.all_reduce(total, dist.ReduceOp.SUM)
        return total

    def gather(self, value: T) -> list[T]:
        """Every rank's picklable value, by rank, on every rank."""
        if self._control is None:
            return [value]
        with self._waiting():
            return self._control.gather(value)

    def broadcast_object(self, value: T) -> T:
        """Rank 0's picklable value, on every rank."""
        if self._control is None:
            return value
        with self._waiting():
            return self._control.broadcast(value)

    def close(self) -> None:
        """Destroy the process groups: at the interpreter's exit their threads may abort the process."""
        self._control = None
        dist.destroy_process_group()

    def save_before_stopping(self) -> None:
        """From here on a request to stop is agreed on, and what is finished is saved."""
        if self.stop is not None:
            self.stop.save_first()

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Inside, the ranks agree without looking at `stop`: what has begun is completed."""
        before, self._finishing = self._finishing, True
        try:
            yield
        finally:
            self._finishing = before

    def check_stop(self) -> None:
        """Raise Stopped on this rank alone, if the run shall stop: inside a block of `raise_together`."""
        stopped = self._stopped()
        if stopped is not None:
            raise stopped

    def _stopped(self) -> Stopped | None:
        return None if self.stop is None or self._finishing else self.stop.wanted()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Marks this rank as waiting in a collective, so that messages list only the ranks that have not arrived."""
        before = self.now
        self.set_status(WAITING)
        with self.collective():
            yield
        self.set_status(before)

    @contextmanager
    def collective(self) -> Iterator[None]:
        """Converts the error of a collective that lost a rank to a fault with a message.

        Raises:
            LostRanks: another rank is gone, or has not arrived within the process group's time-out.
        """
        try:
            yield
        except RuntimeError as error:
            lost = self.size > 1 and any(sign in str(error).lower() for sign in LOST_SIGNS)
            if not lost or is_out_of_memory(error):  # NCCL's own, where it has no room for a buffer
                raise
            told = ", ".join(f"rank {rank}: {doing}" for rank, doing in self._others())
            raise LostRanks(
                f"rank {self.rank} waited for the other ranks in vain: {str(error).strip().splitlines()[0]}",
                where=f"last heard of {told}" if told else "",
                fix="look for the words of a rank that failed first (killed: out of memory?), or for one that hangs;"
                " a rank may take longer with a larger deepspeed.collective_timeout_s",
            ) from error

    def _others(self) -> list[tuple[int, str]]:
        """(rank, status) of the ranks that are not waiting themselves, if rank 0 can still be read.

        Read in a thread: the store of a stopped rank 0 accepts the request and never answers, in spite of the time-out.
        """
        if self._notes is None:
            return []
        answers: SimpleQueue[list[tuple[int, str]]] = SimpleQueue()
        asking = Thread(target=lambda notes: answers.put(self._noted(notes)), args=(self._notes,), daemon=True)
        asking.start()
        try:
            return answers.get(timeout=ASK_TIMEOUT.total_seconds())
        except Empty:
            self._notes = None  # further requests would wait for this one
            return [(0, "not known, it does not answer")]

    def _noted(self, notes: dist.TCPStore) -> list[tuple[int, str]]:
        others = [rank for rank in range(self.size) if rank != self.rank]
        try:
            noted = [rank for rank in others if notes.check([str(rank)])]
            doing = [notes.get(str(rank)).decode() for rank in noted]
        except RuntimeError:  # torch.distributed's own: the store is gone with rank 0
            return [(0, "not known, it is gone")]
        return [pair for pair in zip(noted, doing, strict=True) if pair[1] != WAITING][:MAX_NAMED]

    def raise_together(self, doing: str, *, num_flags: int = 0) -> "Agreement":
        """`with world.raise_together("reading the data"):` for a block that may fail on some ranks.

        Args:
            doing: what the block does, in words.
            num_flags: numbers that the ranks exchange with the failures; see `Agreement.flags`.
        """
        return Agreement(self, doing, num_flags)


class Agreement:
    """At the end of the block all ranks exchange whether they failed; if one did, every rank raises the same error.

    It is the error of the lowest failing rank, so that all ranks exit with its message and exit code. A rank that is
    asked to stop counts as one that failed.

    Attributes:
        flags: set inside the block by each rank; after it, the largest of each over all ranks.
    """

    def __init__(self, world: World, doing: str, num_flags: int) -> None:
        self.world = world
        self.doing = doing
        self.flags = [0] * num_flags

    def __enter__(self) -> "Agreement":
        self.world.set_status(self.doing)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, LocalFault):
            return False  # it could not be exchanged, or there are no other ranks left
        own = error or self.world._stopped()
        try:
            failed, *self.flags = self.world.all_reduce_max(int(own is not None), *self.flags)
            seen = self.world.gather(_portable(own)) if failed else []
        except LostRanks as lost:
            if error is None or isinstance(error, Stopped):
                raise
            if isinstance(error, Stage2Error):  # the other ranks will never report it
                raise LocalFault(f"rank {self.world.rank}: {error.why}", where=error.where, fix=error.fix) from lost
            error.add_note(f"rank {self.world.rank} could not tell the others: {lost}")
            return False  # this rank's own error goes on
        self.world.set_status(f"what follows {self.doing}")
        if failed:
            _raise_first(seen, self.world.rank, error)
        return False


def _raise_first(seen: list[Stage2Error | None], rank: int, error: BaseException | None) -> None:
    """Raise the failure of the lowest rank that has one, before one that is asked to stop.

    Args:
        seen: of each rank.
        rank: this one; its own error, already on its way, is left to go on.
    """
    first = min(
        (place for place, failure in enumerate(seen) if failure is not None),
        key=lambda place: (isinstance(seen[place], Stopped), place),
    )
    failure = seen[first]
    if isinstance(failure, Stopped):
        raise failure from error
    if first != rank:
        raise type(failure)(f"rank {first}: {failure.why}", where=failure.where, fix=failure.fix) from error


def _portable(error: BaseException | None) -> Stage2Error | None:
    """An error that can be sent to another rank."""
    if error is None or isinstance(error, Stage2Error):
        return error
    return Stage2Error(f"{type(error).__name__}: {error}")

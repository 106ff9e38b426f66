"""This rank's raw samples in the order of its draws, read here or by worker processes one step ahead.

`stream` alone decides which sample belongs to a draw: workers only change when it is read.
"""

import gc
import math
import resource
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.context import SpawnContext
from multiprocessing.queues import Queue
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

from ds_stage2ab.carriers import Record, Sample, Skipped
from ds_stage2ab.data.asked import Asked
from ds_stage2ab.data.encode import Encoder
from ds_stage2ab.data.stream import SampleOrder, draws_of, shuffled_objects
from ds_stage2ab.errors import EXIT_ENVIRONMENT, DataError, EnvironmentFault
from ds_stage2ab.plan import RunPlan
from ds_stage2ab.runtime.shutdown import end_with_parent, exit_now, say

T = TypeVar("T")

LOOK_S = 0.5
"""Between two looks whether the run shall stop."""
FEEDER = "QueueFeederThread"
"""multiprocessing's name of the thread that writes to a queue."""
DEAD = "DataLoader worker (pid"
"""Start of torch's message that a worker died; an exception in a worker begins `Caught ... in DataLoader worker`."""
FILES_PER_SAMPLE = 4
"""Torch keeps a file open for each of a sample's two tensors, of this step and of the last one until it is freed."""
OTHER_FILES = 256
"""Other files of a rank: sockets to the other ranks and to servers, logs. A small run has less than 50."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader(Dataset):
    """Draw -> its sample; plain data, so that it can be sent to worker processes."""

    records: Sequence[Record]
    order: SampleOrder
    encoder: Encoder
    asked: Asked
    seed: int
    shuffle_objects: bool
    skip_bad: bool
    # whether a sample that cannot be read is skipped

    def __getitem__(self, draw: int) -> Sample | Skipped | DataError:
        """An error is returned, not raised: it is sent between processes as a value."""
        record = self.records[self.order.record_of(draw)]
        if self.shuffle_objects:
            record = shuffled_objects(record, self.seed, draw)
        try:
            return self.encoder.encode(self.asked(record, draw), draw)
        except DataError as error:
            if self.skip_bad:
                return Skipped(sample_id=record.id, draw=draw, why=error.why)
            return error


class Feed:
    """(step, micro-step) -> this rank's raw samples; called in order.

    Args:
        reader: reads one draw.
        plan: the batch arithmetic.
        rank: this learner rank.
        workers: processes that read one step ahead; 0 reads in this process, when called.
        check_stop: called now and then while the workers are waited for; may raise.

    Raises:
        EnvironmentFault: this machine cannot start workers.
    """

    def __init__(
        self,
        reader: Reader,
        plan: RunPlan,
        rank: int,
        *,
        workers: int,
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self.reader = reader
        self.plan = plan
        self.rank = rank
        self.workers = workers
        self.check_stop = check_stop
        self._ahead: Iterator[list] | None = None
        self._waiting = ThreadPoolExecutor(max_workers=1, thread_name_prefix="samples")
        if workers:
            _need_semaphores()

    def __call__(self, step: int, micro_step: int) -> list[Sample | Skipped]:
        """The samples of one micro-step.

        Raises:
            DataError: a sample cannot be read, and the config does not say to skip it.
            EnvironmentFault: a worker process has died, or the limit of open files is too low.
        """
        draws = self._draws(step, micro_step)
        found = self._from_workers(step) if self.workers else [self.reader[draw] for draw in draws]
        fault = next((one for one in found if isinstance(one, DataError)), None)
        if fault is not None:
            raise fault
        assert [one.draw for one in found] == draws, "the feed and the loop disagree"
        return found

    def close(self) -> None:
        """End the worker processes, and give their semaphores back: else Python tells of leaked ones at the end."""
        if self._ahead is not None:
            self._ahead = None
            gc.collect()  # torch's iterator and its queues refer to each other
            for thread in threading.enumerate():
                if thread.name == FEEDER:
                    thread.join(LOOK_S)  # it holds the queue to a worker
        self._waiting.shutdown(wait=False)  # last: with their thread the kernel would end the workers

    def _draws(self, step: int, micro_step: int) -> list[int]:
        return draws_of(
            step,
            self.rank,
            micro_step,
            effective_batch_size=self.plan.effective_batch_size,
            num_ranks=self.plan.learners,
            per_device_batch_size=self.plan.per_device,
        )

    def _from_workers(self, step: int) -> list[Sample | Skipped | DataError]:
        if self._ahead is None:
            _allow_files(OTHER_FILES + FILES_PER_SAMPLE * self.plan.accumulation_steps * self.plan.per_device)
            self._ahead = self._in_thread(lambda: iter(self._loader(first_step=step)))
        try:
            return self._in_thread(lambda: next(self._ahead))
        except RuntimeError as error:
            if not str(error).startswith(DEAD):
                raise
            raise EnvironmentFault(
                f"a process that reads samples has died: {error}",
                where="data.workers",
                fix="look for its own words, for the kernel's out-of-memory killer, and at the size of /dev/shm;"
                " or set data.workers: 0",
            ) from error

    def _in_thread(self, call: Callable[[], T]) -> T:
        """The result of a call that waits for the workers, which nothing could interrupt in the main thread.

        It is always the same thread, since workers end with the thread that has started them; and another than the
        main thread, where torch would set a SIGCHLD handler that raises a worker's death at any point of this process,
        in a backward pass too.
        """
        result = self._waiting.submit(call)
        while not wait([result], timeout=LOOK_S).done:
            self.check_stop()
        return result.result(timeout=0)

    def _loader(self, first_step: int) -> DataLoader:
        """Batches of micro-steps in order, from the first of a step; prefetches one step."""
        micro_steps = range(self.plan.accumulation_steps)
        steps = range(first_step, self.plan.total_steps)
        batches = _Batches(lambda: (self._draws(step, micro_step) for step in steps for micro_step in micro_steps))
        return DataLoader(
            self.reader,
            batch_sampler=batches,
            num_workers=self.workers,
            prefetch_factor=math.ceil(self.plan.accumulation_steps / self.workers),
            collate_fn=list,
            worker_init_fn=_start_worker,
            multiprocessing_context=_Spawning(),
        )


@dataclass(frozen=True, slots=True)
class _Batches:
    """The batches of a loader, made as they are asked for: those of a whole run need not be held."""

    make: Callable[[], Iterator[list[int]]]

    def __iter__(self) -> Iterator[list[int]]:
        return self.make()


def _need_semaphores() -> None:
    """Make one as the workers' queues do: without a /dev/shm there are none."""
    try:
        _Spawning().Lock()
    except OSError as error:
        raise EnvironmentFault(
            f"processes that read samples need semaphores, and there are none: {error.strerror}",
            where="data.workers",
            fix="give this machine a /dev/shm that can be written, or set data.workers: 0",
        ) from error


def _start_worker(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the rank too, which ends its workers
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # a scheduler's warning is the rank's
    end_with_parent()


class _Spawning(SpawnContext):
    """Spawns workers: a child forked from a process with threads and a process group may deadlock."""

    def Queue(self, maxsize: int = 0) -> Queue:
        return _Outbox(maxsize, ctx=self.get_context())


class _Outbox(Queue):
    """Ends the worker if an item cannot be sent: by default it is dropped, and the reader waits for it for ever."""

    def _on_queue_feeder_error(self, error: Exception, item: Any) -> None:
        say(f"samples cannot be handed over: {error}\n  fix: give /dev/shm more room, or set data.workers: 0")
        exit_now(EXIT_ENVIRONMENT)


def _allow_files(number: int) -> None:
    """Raise the limit of open files of this process, and of those that it starts, to `number`.

    Raises:
        EnvironmentFault: the hard limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= number:
        return
    if hard != resource.RLIM_INFINITY and hard < number:
        raise EnvironmentFault(
            f"with data.workers the samples of a step take up to {number} open files, and {hard} are allowed",
            where="data.workers",
            fix="raise the hard limit (`ulimit -Hn`), or set data.workers: 0",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))

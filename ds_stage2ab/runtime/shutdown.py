"""How a rank exits early: at once, with a message, and without leaving processes behind."""

import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import NoReturn

from ds_stage2ab.errors import EXIT_ENVIRONMENT, LAST_QUESTIONS_S, LocalFault, Stage2Error, exit_code
from ds_stage2ab.runtime.streams import STDERR

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that the kernel sends a process when its parent ends."""

EXIT_INTERRUPTED = 128 + signal.SIGINT
"""As a shell reports a command that Ctrl-C has ended."""


def end_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies: no launcher leaves ranks behind, and no rank its workers."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def on_signals(numbers: Sequence[int], then: Callable[[int], None]) -> None:
    """Call `then(number)` in a thread whenever one of these signals comes; to be called in the main thread.

    On SIGUSR2 print the stack of every thread, and go on.

    Python's own handlers wait until the main thread runs Python again, which it does not while it waits for a dead
    rank: so a thread reads the signals from the wake-up pipe.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # first, so that none is lost
    for number in numbers:
        signal.signal(number, lambda number, frame: None)

    def wait() -> None:
        while True:
            number = os.read(reader, 1)[0]
            if number in numbers:
                then(number)

    faulthandler.register(signal.SIGUSR2)  # prints every stack, also while the main thread is blocked
    threading.Thread(target=wait, name="signals", daemon=True).start()


def end_on_signals(rank: int, doing: Callable[[], str]) -> None:
    """On SIGTERM or SIGINT say what this rank was doing, and exit with code 4: for a command with nothing to save.

    Args:
        doing: returns what the rank is doing.
    """

    def end(number: int) -> None:
        if number == signal.SIGTERM or rank == 0:  # Ctrl-C reaches all ranks
            say(f"rank {rank}: ended by {signal.Signals(number).name}; it was at: {doing()}")
        exit_now(EXIT_ENVIRONMENT)

    on_signals((signal.SIGTERM, signal.SIGINT), end)


def say(fault: object, *, head: str = "error") -> None:
    """Write `error: ...` to stderr in one piece, because the ranks share it."""
    with suppress(OSError):  # nobody reads it
        os.write(STDERR, f"{head}: {fault}\n".encode())


def report_error(error: Stage2Error, rank: int, *, speaks: bool) -> int:
    """Print the error that ends this rank, once for all ranks unless it is a LocalFault; returns the exit code.

    Args:
        speaks: whether this rank prints the errors that all ranks raise.
    """
    if speaks or isinstance(error, LocalFault):
        say(error, head=error.head)
    if rank == 0 and isinstance(error, LocalFault):
        time.sleep(LAST_QUESTIONS_S)  # rank 0 holds the status that the other ranks are about to read
    return exit_code(error)


def exit_now(code: int) -> NoReturn:
    """End the process now: at the interpreter's exit a thread of the process group may abort or block."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """For `sys.excepthook`: a rank with an unexpected error must not wait for the others.

    Writes to the real stderr: torch.distributed replaces it by a buffer around this hook.
    """
    if issubclass(kind, KeyboardInterrupt):  # at the start: later the handler of the signal has it
        if os.environ.get("RANK", "0") == "0":
            say("ended by SIGINT (Ctrl-C) before the run began")
        os._exit(EXIT_INTERRUPTED)
    traceback.print_exception(kind, error, trace, file=sys.__stderr__)
    sys.__stderr__.flush()
    os._exit(exit_code(error))

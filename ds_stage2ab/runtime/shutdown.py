"""How a rank exits early: at once, with a message, and without leaving processes behind."""

import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import NoReturn

from ds_stage2ab.errors import EXIT_ENVIRONMENT, LAST_QUESTIONS_S, LocalFault, Stage2Error, exit_code
from ds_stage2ab.runtime.streams import STDERR

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that the kernel sends a process when its parent ends."""

EXIT_INTERRUPTED = 128 + signal.SIGINT
"""As a shell reports a command that Ctrl-C has ended."""
WORDS_OF_SIGNALS = {
    signal.SIGTERM: "SIGTERM; it was at: {doing}{kept}\n"
    "  fix: the launcher sends this to every rank when one of them has died: then look for the words of that one; or"
    " when the run is stopped: after Ctrl-C a traceback of DeepSpeed's own launcher says no more than that",
    signal.SIGINT: "SIGINT (Ctrl-C), as all ranks; it was at: {doing}{kept}\n"
    "  fix: nothing is wrong",
}


def end_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies: no launcher leaves ranks behind, and no rank its workers."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def install_sigterm_handler(rank: int, doing: Callable[[], str], saved: Callable[[], str] = str) -> None:
    """On SIGTERM print what this rank was doing, and exit with code 4; to be called in the main thread.

    On SIGINT, which Ctrl-C sends to every rank, rank 0 does so for all.

    On SIGUSR1 print the stack of every thread, and go on.

    The launcher sends SIGTERM to every rank when one has died. Python's own handlers wait until the main thread runs
    Python again, which it does not while it waits for a dead rank: so a thread reads the signal from the wake-up pipe.

    Args:
        doing: returns what the rank is doing.
        saved: returns what rank 0 says of the newest checkpoint; by default nothing.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for ends in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ends, lambda number, frame: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def wait() -> None:
        while (number := os.read(reader, 1)[0]) not in WORDS_OF_SIGNALS:
            pass
        if number == signal.SIGTERM or rank == 0:
            kept = f"; {saved()}" if rank == 0 and saved() else ""
            say(f"rank {rank}: ended by {WORDS_OF_SIGNALS[number].format(doing=doing(), kept=kept)}")
        exit_now(EXIT_ENVIRONMENT)

    faulthandler.register(signal.SIGUSR1)  # prints every stack, also while the main thread is blocked
    threading.Thread(target=wait, name="SIGTERM", daemon=True).start()


def say(fault: object) -> None:
    """Write `error: ...` to stderr in one piece, because the ranks share it."""
    with suppress(OSError):  # nobody reads it
        os.write(STDERR, f"error: {fault}\n".encode())


def report_error(error: Stage2Error, rank: int, *, speaks: bool) -> int:
    """Print the error that ends this rank, once for all ranks unless it is a LocalFault; returns the exit code.

    Args:
        speaks: whether this rank prints the errors that all ranks raise.
    """
    if speaks or isinstance(error, LocalFault):
        say(error)
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

"""Standard output and error that cannot be written: nobody reads them any more, they are closed, or their disk is full.

A command whose answer is all that it does ends then (`| head`); what is at work goes on without its console.
"""

import io
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

EXIT_UNREAD = 128 + signal.SIGPIPE
"""As a shell reports a command that SIGPIPE has ended."""
STDOUT, STDERR = 1, 2


class _Stream(io.FileIO):
    """Writes to a file descriptor; an error of the system goes to `lost`, and what was to be written is dropped."""

    def __init__(self, number: int, lost: Callable[[OSError], None]) -> None:
        super().__init__(number, "w", closefd=False)
        self._lost = lost

    def write(self, data: bytes) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            self._lost(error)
            return len(data)


def guard_streams(*, goes_on: bool) -> None:
    """Replace `sys.stdout` and `sys.stderr` by streams that never raise.

    Args:
        goes_on: whether the process goes on without its standard output; else it exits at once, with `EXIT_UNREAD`.
    """
    for number in (0, STDOUT, STDERR):  # a file that is opened later would get the number, and what is printed
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    sys.stdout = sys.__stdout__ = _text(sys.stdout, STDOUT, _Mention() if goes_on else _exit)
    sys.stderr = sys.__stderr__ = _text(sys.stderr, STDERR, lambda error: None)


def _text(old: TextIO | None, number: int, lost: Callable[[OSError], None]) -> TextIO:
    """Text as the stream before it was encoded; None is one that was closed when Python started."""
    form = {} if old is None else {"encoding": old.encoding, "errors": old.errors}
    by_line = number == STDERR or (old is not None and old.line_buffering)
    return io.TextIOWrapper(io.BufferedWriter(_Stream(number, lost)), line_buffering=by_line, **form)


class _Mention:
    """Says once that the output is lost."""

    def __init__(self) -> None:
        self._said = False

    def __call__(self, error: OSError) -> None:
        if not self._said:
            self._said = True
            words = f"warning: the output cannot be written ({error.strerror}); the work goes on without it\n"
            with suppress(OSError):  # stderr is gone as well
                os.write(STDERR, words.encode())


def _exit(error: OSError) -> None:
    if not isinstance(error, BrokenPipeError):
        with suppress(OSError):  # stderr is gone as well
            os.write(STDERR, f"error: the answer cannot be written: {error.strerror}\n".encode())
    os._exit(EXIT_UNREAD)

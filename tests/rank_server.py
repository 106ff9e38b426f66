"""A process that has imported what a rank imports, and becomes one for every request: by a fork, in milliseconds.

The imports of a rank take seconds of a core, and most runs of the tests are shorter. What a rank does is real all the
same: a process of its own, with its own signals, exit code and parent, that runs the script as `__main__`.

It imports with one thread and makes no tensor, so a fork finds no lock that another thread holds.
"""

import atexit
import fcntl
import gc
import json
import multiprocessing.spawn
import os
import resource
import runpy
import select
import signal
import socket
import sys
import threading
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import FrameType

from PIL import Image

MAX_REQUEST = 1 << 20
MAX_FILES = 64
OUT_OF_THE_WAY = 512
"""Above every file of this process and of a request."""

IMPORTED = (
    "ds_stage2ab.assemble.run",
    "ds_stage2ab.evaluation.command",
    "ds_stage2ab.metrics.report",
    # late, where an engine or a figure is made
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.ops.op_builder.all_ops",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # and with it torch's compiler
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "setuptools.dist",
)
"""Everything that `ds_stage2ab/train.py` imports on its way."""


def import_all() -> None:
    for name in IMPORTED:
        import_module(name)
    Image.init()  # the readers of image files
    gc.collect()
    gc.freeze()  # a fork's collections leave alone what was imported, and its pages shared


class Server:
    """Forks at each connection to its socket, and writes the exit code there when the fork has ended.

    A fork whose connection is closed before is killed.
    """

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.reader, self.writer = os.pipe()
        self.running: dict[int, socket.socket] = {}
        # by process id: where its end is told

    def serve(self) -> list[str]:
        """Until the parent closes our stdin; in a fork, the command line that it shall run."""
        os.set_blocking(self.writer, False)
        signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _nothing)
        while True:
            ready, _, _ = select.select([self.listener, self.reader, sys.stdin, *self.running.values()], [], [])
            if self.reader in ready:
                os.read(self.reader, 4096)
                self._tell_ends()
            for child, connection in self.running.items():
                if connection in ready:  # closed, or it says so again until the fork has ended
                    os.kill(child, signal.SIGKILL)
            if sys.stdin in ready:
                raise SystemExit
            if self.listener in ready:
                connection, _ = self.listener.accept()
                words = self._fork(connection)
                if words:
                    return words

    def _fork(self, connection: socket.socket) -> list[str]:
        """Nothing; in the fork, its command line."""
        asked, files, _, _ = socket.recv_fds(connection, MAX_REQUEST, MAX_FILES)
        request = json.loads(asked)
        child = os.fork()
        if child:
            for file in files:
                os.close(file)
            self.running[child] = connection
            connection.sendall(f"{child}\n".encode())
            return []
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for other in (self.listener, connection, *self.running.values()):
            other.close()
        for spare in (self.reader, self.writer):
            os.close(spare)
        _place([os.open(os.devnull, os.O_RDONLY), *files], [0, *request["files"]])
        resource.setrlimit(resource.RLIMIT_NOFILE, request["limit"])
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        return request["words"]

    def _tell_ends(self) -> None:
        with suppress(ChildProcessError):  # no fork is left to wait for
            while True:
                child, status = os.waitpid(-1, os.WNOHANG)
                if not child:
                    return
                # A test that has ended no longer reads how its ranks did.
                with self.running.pop(child) as connection, suppress(OSError):
                    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _place(files: list[int], numbers: list[int]) -> None:
    """Make them the files of these numbers; of two for one number the later."""
    parked = [fcntl.fcntl(file, fcntl.F_DUPFD, OUT_OF_THE_WAY) for file in files]
    for file in files:
        os.close(file)
    for file, number in zip(parked, numbers, strict=True):
        os.dup2(file, number)
        os.close(file)


def _nothing(number: int, frame: FrameType | None) -> None:
    """The wake-up pipe has it."""


def run(command: list[str], python: str) -> None:
    """As the interpreter would: a script, `-m` and a module or `-c` and a program; `python` is `sys.executable`."""
    sys.executable = python
    multiprocessing.spawn.set_executable(python)
    while command[0].startswith("-") and command[0] not in ("-c", "-m"):
        if command.pop(0) == "-u":
            sys.stdout.reconfigure(line_buffering=True)
    kind, *rest = command
    if kind == "-m":
        sys.argv[:] = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv[:] = ["-c", *rest[1:]]
        exec(rest[0], {"__name__": "__main__"})
    else:
        sys.argv[:] = command
        sys.path[0] = str(Path(kind).resolve().parent)
        runpy.run_path(kind, run_name="__main__")


def end(error: BaseException | None) -> None:
    """As the interpreter would, but that nothing which was imported is taken apart: that takes a second of a core.

    Ctrl-C is left to the interpreter.
    """
    if isinstance(error, KeyboardInterrupt):
        return
    code = error.code if isinstance(error, SystemExit) else int(error is not None)
    if isinstance(error, Exception):
        sys.excepthook(type(error), error, error.__traceback__)
    if not isinstance(code, int | None):
        sys.stderr.write(f"{code}\n")
        code = 1
    threading._shutdown()  # waits for threads that are no daemons
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed:
            stream.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    import_all()
    number, executable = sys.argv[1:]
    words = Server(socket.socket(fileno=int(number))).serve()
    try:
        run(words, executable)
    finally:
        end(sys.exception())

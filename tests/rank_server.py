"""A process that has imported what a rank imports, and becomes one for every request: by a fork, in milliseconds.

The imports of a rank take seconds of a core, and most runs of the tests are shorter. What a rank does is real all the
same: a process of its own, with its own signals, exit code and parent, that runs the script as `__main__`.

It imports with one thread and makes no tensor, so a fork finds no lock that another thread holds.
"""

import json
import os
import selectors
import signal
import socket
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import FrameType

from PIL import Image

MAX_REQUEST = 1 << 20
NUM_STREAMS = 2
"""stdout and stderr of the rank."""


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


class Server:
    """Forks at each connection to its socket, and writes the wait status there when the fork has ended."""

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
        with selectors.DefaultSelector() as selector:
            for source in (self.listener, self.reader, sys.stdin):
                selector.register(source, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select()]
                if self.reader in ready:
                    os.read(self.reader, 4096)
                    self._tell_ends()
                if sys.stdin in ready:
                    raise SystemExit
                if self.listener in ready:
                    connection, _ = self.listener.accept()
                    words = self._fork(connection)
                    if words:
                        return words

    def _fork(self, connection: socket.socket) -> list[str]:
        """Nothing; in the fork, its command line."""
        asked, streams, _, _ = socket.recv_fds(connection, MAX_REQUEST, NUM_STREAMS)
        request = json.loads(asked)
        child = os.fork()
        if child:
            for stream in streams:
                os.close(stream)
            self.running[child] = connection
            connection.sendall(f"{child}\n".encode())
            return []
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for other in (self.listener, connection, *self.running.values()):
            other.close()
        nowhere = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nowhere, 0), (streams[0], 1), (streams[1], 2)):
            os.dup2(source, target)
        for spare in (self.reader, self.writer, nowhere, *streams):
            os.close(spare)
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


def _nothing(number: int, frame: FrameType | None) -> None:
    """The wake-up pipe has it."""


if __name__ == "__main__":
    import runpy

    import_all()
    command = Server(socket.socket(fileno=int(sys.argv[1]))).serve()
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

"""A Python that starts in milliseconds: its command line runs as a fork of `tests/rank_server.py`, in its place.

`sys.executable` of a fork is a script that runs this (see `tests.ranks.python`), so that what DeepSpeed's launcher
starts, and the processes that read a rank's samples, are forks too. This process hands its files, limits and
environment on, passes signals on, and ends as the fork does; the fork ends with it.
"""

import ctypes
import json
import os
import resource
import signal
import socket
import sys
from contextlib import suppress

HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
PR_SET_PDEATHSIG = 1
OUTLIVES = "multiprocessing.resource_tracker"
"""Cleans up after the process that has started it."""


def open_files() -> list[int]:
    """Those that a program which is executed here would have too."""
    files = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one that has listed them
            if os.get_inheritable(int(name)):
                files.append(int(name))
    return files


def main(address: str, *words: str) -> None:
    request = {
        "words": words,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "files": open_files(),
        "limit": resource.getrlimit(resource.RLIMIT_NOFILE),
    }
    if not any(OUTLIVES in word for word in words):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # the fork follows
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(address)
    socket.send_fds(connection, [json.dumps(request).encode()], request["files"])
    fork = int(connection.recv(32))
    for number in HANDED_ON:
        signal.signal(number, lambda number, _: os.kill(fork, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDED_ON)
    for file in request["files"]:
        os.close(file)  # its other end shall see when the fork has closed it
    code = int(connection.recv(32) or -signal.SIGKILL)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])

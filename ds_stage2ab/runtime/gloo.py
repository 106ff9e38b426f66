"""Gloo groups whose members can reach each other: each gives the address that faces the others.

By itself Gloo gives what the host's name resolves to: a loopback address on Debian, which no other machine reaches.
Imports torch alone: a vLLM server's environment has no more of ours.
"""

import socket
from datetime import timedelta

import torch.distributed as dist

ANY_PORT = 9
"""Of an address that nothing is sent to."""


def address_towards(host: str, port: int = ANY_PORT) -> str:
    """This machine's address as seen from a host.

    Raises:
        OSError: there is no way to it, or its name is unknown.
    """
    family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(place)  # sends nothing: the kernel chooses the interface
        return probe.getsockname()[0]


def gloo_group(
    store: dist.Store, rank: int, size: int, timeout: timedelta, *, address: str
) -> dist.ProcessGroupGloo:
    """Join a group; the other members connect to `address`.

    Args:
        store: the rendezvous of the members.
        timeout: of joining, and of every collective.

    Raises:
        RuntimeError: a member does not come in time.
    """
    options = dist.ProcessGroupGloo._Options()
    options._timeout = timeout
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    return dist.ProcessGroupGloo(store, rank, size, options)

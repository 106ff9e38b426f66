"""The request arithmetic: how many rollout requests each learner rank may have in flight, and at which server.

D = `decode_batch_size`, s_i = replicas of server i, S = their sum, W = learner ranks. Together the servers decode at
most D S sequences at any moment, and these permits are divided among the ranks once, so ranks need not coordinate.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from ds_stage2ab.config.batch import counted
from ds_stage2ab.errors import ConfigError

BACKEND = "custom.extra.rollout_matching.rollout_backend"
DECODE_BATCH = "custom.extra.rollout_matching.decode_batch_size"
API_KEY_ENV = "custom.extra.rollout_matching.vllm.server.api_key_env"
SERVERS = "custom.extra.rollout_matching.vllm.server.servers"
INFER_TIMEOUT = "custom.extra.rollout_matching.vllm.server.infer_timeout_s"

MODEL_NAME = "ds_stage2ab"
"""The served model name at every server: a path would differ between machines."""
GLOO_TRANSFER, NCCL_TRANSFER = "ds_stage2ab_gloo", "nccl"
"""Supported weight transfer engines of vLLM: that of `rollout.server.vllm_plugin`, through host memory on any device,
and vLLM's own, from GPU to GPU."""


def replicas_of(tensor_parallel_sizes: list[int], rollout_devices: int | None) -> list[int]:
    """Replicas of each server, the same number for all.

    Args:
        tensor_parallel_sizes: per server, the devices that one replica of it spans.
        rollout_devices: devices of all servers together; None: one replica each.

    Raises:
        ConfigError: that many devices do not make whole replicas, equally many per server.
    """
    unit = sum(tensor_parallel_sizes)
    if rollout_devices is None:
        return [1 for _ in tensor_parallel_sizes]
    if rollout_devices and rollout_devices % unit == 0:
        return [rollout_devices // unit for _ in tensor_parallel_sizes]
    raise ConfigError(
        f"{counted(rollout_devices, 'rollout device')} cannot be dealt out evenly:"
        f" one replica of each of the {counted(len(tensor_parallel_sizes), 'server')} takes {unit} together",
        where=SERVERS,
        fix=f"use {unit} rollout devices or a multiple of it, or name other servers",
    )


def request_window(decode_batch_size: int, server_replicas: list[int], learner_ranks: int) -> int:
    """Rule 3: floor(D S / W), the least number of requests that a rank may have in flight.

    Raises:
        ConfigError: D S < W, so that some rank could never send a request.
    """
    permits = decode_batch_size * sum(server_replicas)
    if permits >= learner_ranks:
        return permits // learner_ranks
    replicas = sum(server_replicas)
    least = -(-learner_ranks // replicas) if replicas else None
    raised = f"set {DECODE_BATCH} to {least} or more, " if least else ""
    raise ConfigError(
        f"{decode_batch_size} x {counted(replicas, 'server replica')} = {counted(permits, 'sequence')} at once,"
        f" fewer than the {counted(learner_ranks, 'learner rank')}: some rank could never send a request",
        where=DECODE_BATCH,
        fix=f"{raised}start more server replicas, or use at most {counted(permits, 'learner rank')}"
        if permits
        else "start at least one server replica",
    )


def server_slots(decode_batch_size: int, server_replicas: list[int], learner_ranks: int) -> list[list[int]]:
    """The permits of each rank at each server: [rank][server].

    The D s_i permits of server i are dealt round robin, after the rank with the last one of server i - 1: a
    column sums to D s_i, and a row to floor(D S / W) or one more.
    """
    slots = [[0] * len(server_replicas) for _ in range(learner_ranks)]
    first = 0
    for server, replicas in enumerate(server_replicas):
        quotient, rest = divmod(decode_batch_size * replicas, learner_ranks)
        for offset in range(learner_ranks):
            slots[(first + offset) % learner_ranks][server] = quotient + (offset < rest)
        first = (first + rest) % learner_ranks
    return slots


def interleaved(permits: Sequence[int]) -> list[int]:
    """The server of each permit, so that any number of the first ones are at the servers in proportion to all."""
    places = [((place + 0.5) / count, server) for server, count in enumerate(permits) for place in range(count)]
    return [server for _, server in sorted(places)]


def split_requests(n: int, server_replicas: list[int]) -> list[range]:
    """What each server gets of a rank's n requests where answers are alike: proportional to the replicas within one.

    By largest remainder (Hamilton's method); among equal remainders the earlier server.

    Raises:
        ConfigError: there are requests and no replica.
    """
    total = sum(server_replicas)
    if total == 0:
        if n:
            raise ConfigError(f"{counted(n, 'request')} and no server replica", fix="start at least one server replica")
        return [range(0) for _ in server_replicas]
    shares = [n * replicas // total for replicas in server_replicas]
    by_remainder = sorted(range(len(shares)), key=lambda i: -(n * server_replicas[i] % total))
    for i in by_remainder[: n - sum(shares)]:
        shares[i] += 1
    ends = [sum(shares[: i + 1]) for i in range(len(shares))]
    return [range(end - share, end) for end, share in zip(ends, shares, strict=True)]


def api_key(variable: str | None) -> str | None:
    """The key of the servers, from the environment variable of that name; no message holds either.

    Raises:
        ConfigError: there is no such variable, or it holds what no header may.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            "the environment variable that it names is not set here, or is empty",
            where=API_KEY_ENV,
            fix="set the variable to the servers' key where each learner starts, or delete this key",
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(
            "the environment variable that it names holds blanks or other characters that a header may not have",
            where=API_KEY_ENV,
            fix="set the variable to the key with which the servers were started, and nothing else",
        )
    return key


def is_loopback(base_url: str) -> bool:
    """Whether an address is a loopback one; names are not resolved."""
    host = urlsplit(base_url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

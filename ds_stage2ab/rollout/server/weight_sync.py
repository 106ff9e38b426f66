"""Sends all weights to the servers, in buckets of tensors, before rollouts are sampled.

Every learner rank takes part in every gather (ZeRO 3); rank 0 alone calls the servers. Per server: pause, empty the
caches, start, update, finish with the version, and resume in any case. The weights that train are not changed:
adapters are merged into copies, tensor by tensor.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol
from urllib.parse import urlsplit

from torch import Tensor, nn

from ds_stage2ab.carriers import Transfer
from ds_stage2ab.config.servers import GLOO_TRANSFER, NCCL_TRANSFER
from ds_stage2ab.errors import ServerFault
from ds_stage2ab.rollout.base import weight_version
from ds_stage2ab.rollout.server.api import ServerApi, as_server_fault
from ds_stage2ab.rollout.server.gloo import SENDER, GlooLink
from ds_stage2ab.rollout.server.http_client import ClientError, ReadTimeout, ServerUnavailable
from ds_stage2ab.rollout.server.nccl import NcclLink, is_usable
from ds_stage2ab.runtime.gloo import address_towards
from ds_stage2ab.runtime.ranks import World

HTTP_PORT = 80
LOOK_S = 0.5  # between two looks whether the run shall stop
SPARE_S = 5.0  # margin of a watched call above its own time-out


class ParameterProvider(Protocol):
    """Gathers single parameters of the model that trains, also under ZeRO 3; `engine.whole_model` does."""

    model: nn.Module

    def part(self, names: Collection[str], device: str, *, only_first: bool) -> AbstractContextManager[None]: ...


class ExportTensor(Protocol):
    """A tensor of a plain checkpoint, and the parameters that it is made from; `engine.tuner.Merged` is one."""

    name: str
    needs: tuple[str, ...]
    make: Callable[[], Tensor]


class Link(Protocol):
    """Rank 0's end of the group with one server's workers; a bucket is sent during the HTTP call that announces it."""

    place: str
    # the rendezvous of the group

    def invitation(self) -> dict[str, Any]: ...

    def join(self) -> None: ...

    def send(self, tensors: Sequence[Tensor]) -> None: ...


@dataclass(slots=True, kw_only=True)
class Target:
    """One server, as rank 0 sends weights to it."""

    api: ServerApi
    group_port: int | None
    world_size: int
    # workers
    transfer: str
    # its weight transfer engine
    link: Link | None = None


class WeightSync:
    """Sends the learner's weights to the servers.

    Args:
        provider: gathers the parameters that tensors are made from.
        tensors: all tensors to send, named as in a plain checkpoint.
        world: the learner ranks.
        targets: the servers; called on rank 0 alone.
        start_id: first half of every version of this start.
        bucket_bytes: size of the tensors that are gathered and sent together.
        timeout_s: of a bucket, on both sides.
    """

    def __init__(
        self,
        provider: ParameterProvider,
        tensors: Callable[[], Sequence[ExportTensor]],
        world: World,
        targets: Sequence[Target],
        *,
        start_id: str,
        bucket_bytes: int,
        timeout_s: float,
    ) -> None:
        self.provider = provider
        self.tensors = tensors
        self.world = world
        self.targets = targets
        self.start_id = start_id
        self.bucket_bytes = bucket_bytes
        self.timeout_s = timeout_s
        self.version = ""  # of the servers' weights; empty during a transfer
        self.last: Transfer | None = None  # the last transfer of this start

    def sync_weights(self, finished_steps: int, *, again: bool = False) -> bool:
        """Send the current weights, unless the servers have them; collective. Returns whether it did.

        Raises:
            ServerFault: on every rank, a server did not load them.
        """
        version = weight_version(self.start_id, finished_steps)
        if version == self.version and not again:
            return False
        self.version, begun = "", time.monotonic()
        with ExitStack() as paused:
            with self.world.raise_together("preparing the servers for new weights"):
                for target in self._mine():
                    paused.enter_context(self._paused(target))
                    self._start(target)
            num_bytes = 0
            for bucket in buckets(self.tensors(), self.provider.model, self.bucket_bytes):
                num_bytes += self._send(bucket)
            with self.world.raise_together("finishing the transfer of the weights", num_flags=1) as agreed:
                agreed.flags[0] = num_bytes  # rank 0 alone knows
                for target in self._mine():
                    with as_server_fault(target.api.url, "finishing a weight update"):
                        target.api.finish_update(version, timeout_s=self.timeout_s)
                paused.close()
        self.version = version
        self.last = Transfer(seconds=time.monotonic() - begun, num_bytes=agreed.flags[0])
        return True

    def _mine(self) -> Sequence[Target]:
        return self.targets if self.world.rank == SENDER else ()

    @contextmanager
    def _paused(self, target: Target) -> Iterator[None]:
        try:
            with as_server_fault(target.api.url, "pausing the server"):
                target.api.pause()
            yield
        except BaseException:
            target.link = None  # its workers see the connection close
            target.api.abandon_update()
            with suppress(ServerUnavailable, ClientError):  # report the first error
                target.api.resume()
            raise
        with as_server_fault(target.api.url, "resuming the server"):
            target.api.resume()

    def _start(self, target: Target) -> None:
        with as_server_fault(target.api.url, "emptying its caches"):
            target.api.clear_caches()
        if target.link is None:
            self._connect(target)
        with as_server_fault(target.api.url, "starting a weight update"):
            target.api.start_update(timeout_s=self.timeout_s)

    def _connect(self, target: Target) -> None:
        """Open the link, call the workers to it, and join; the first failure ends it."""
        target.link = self._link(target)
        call = partial(target.api.join_group, target.link.invitation(), timeout_s=self.timeout_s)
        calls = [(target, call), (target, target.link.join)]
        self._together("connecting for the transfer of weights", calls, meeting=True)

    def _link(self, target: Target) -> Link:
        size = 1 + target.world_size
        if target.transfer == NCCL_TRANSFER:
            return NcclLink(self.world.device, size, self.timeout_s)
        server = urlsplit(target.api.url)
        address = address_towards(server.hostname, server.port or HTTP_PORT)
        try:
            return GlooLink(address, target.group_port, size, self.timeout_s)
        except RuntimeError as error:
            raise ServerFault(
                f"rank 0 cannot wait for the server's workers: {_first_line(error)}",
                where=f"{address}:{target.group_port}",
                fix="another process has this port: set another group_port of this server, or null",
            ) from error

    def _send(self, bucket: Sequence[ExportTensor]) -> int:
        """Returns the bytes that this rank has sent to each server."""
        needs = sorted({name for tensor in bucket for name in tensor.needs})
        agreed = self.world.raise_together("sending weights to the servers")
        device = self.world.device if any(target.transfer == NCCL_TRANSFER for target in self.targets) else "cpu"
        with agreed, self.provider.part(needs, device, only_first=True):
            return self._broadcast(bucket, device) if self.world.rank == SENDER else 0

    def _broadcast(self, bucket: Sequence[ExportTensor], device: str) -> int:
        tensors = [tensor.make().to(device).contiguous() for tensor in bucket]
        names, shapes = [tensor.name for tensor in bucket], [list(made.shape) for made in tensors]
        dtypes = [str(made.dtype).removeprefix("torch.") for made in tensors]
        calls: list[tuple[Target, Callable[[], None]]] = []
        for target in self.targets:
            calls.append((target, partial(target.api.update, names, dtypes, shapes, timeout_s=self.timeout_s)))
            calls.append((target, partial(target.link.send, tensors)))
        self._together(f"sending {len(names)} tensors, the first {names[0]}", calls)
        return sum(made.nbytes for made in tensors)

    def _watched(self, running: Collection[Future], deadline: float) -> tuple[set[Future], set[Future]]:
        """(done, not done) of calls: at the first failure, when all are done, or in vain at the deadline."""
        while True:
            done, late = wait(running, timeout=LOOK_S, return_when=FIRST_EXCEPTION)
            if not late or time.monotonic() > deadline or any(call.exception(timeout=0) for call in done):
                return done, late
            self.world.check_stop()

    def _together(
        self, doing: str, calls: Sequence[tuple[Target, Callable[[], None]]], *, meeting: bool = False
    ) -> None:
        """Run calls that wait for each other, each in a thread; raise the first failure without waiting for the rest.

        Args:
            meeting: an error reply means that the workers cannot reach rank 0; else the reply says why.

        Raises:
            ServerFault: one failed, or was not done in time; names where the workers meet rank 0.
        """
        pool = ThreadPoolExecutor(max_workers=len(calls), thread_name_prefix="weights")
        running = {pool.submit(call): target for target, call in calls}
        pool.shutdown(wait=False)  # a call that is left behind ends by its own time-out
        done, late = self._watched(running, time.monotonic() + self.timeout_s + SPARE_S)
        failed = [(running[call], call.exception(timeout=0)) for call in done]
        faults = [(target, error) for target, error in failed if error is not None]
        faults += [(running[call], TimeoutError(f"not done within {self.timeout_s:g} s")) for call in late]
        if not faults:
            return
        target, fault = faults[0]
        fix = (
            f"the server's workers must reach rank 0 at {target.link.place} (a firewall?); look at the server's own"
            " log; a slow network may take a larger custom.extra.rollout_matching.vllm.sync.timeout_s"
        )
        if isinstance(fault, RuntimeError | TimeoutError):
            raise ServerFault(f"{doing}: {_first_line(fault)}", where=target.api.url, fix=fix) from fault
        with as_server_fault(target.api.url, doing, fix=fix if meeting or isinstance(fault, ReadTimeout) else ""):
            raise fault


def usable_transfers(device: str) -> tuple[str, ...]:
    """The weight transfer engines that a learner on this device can send to."""
    return (NCCL_TRANSFER, GLOO_TRANSFER) if is_usable(device) else (GLOO_TRANSFER,)


def buckets(tensors: Sequence[ExportTensor], model: nn.Module, most_bytes: int) -> list[list[ExportTensor]]:
    """Split tensors into buckets, in order: at most so many bytes each, or one larger tensor.

    Args:
        model: holds the parameters that they are made from, whole or partitioned by ZeRO 3.
        most_bytes: of the parameters of a bucket together.
    """
    sizes = {name: _whole_size(parameter) for name, parameter in model.named_parameters()}
    found: list[list[ExportTensor]] = [[]]
    room = most_bytes
    for tensor in tensors:
        size = sum(sizes[name] for name in tensor.needs)
        if found[-1] and size > room:
            found.append([])
            room = most_bytes
        found[-1].append(tensor)
        room -= size
    return found


def _whole_size(parameter: nn.Parameter) -> int:
    """Bytes of the whole parameter: ZeRO 3 keeps its number of elements in `ds_numel`."""
    count = parameter.ds_numel if hasattr(parameter, "ds_numel") else parameter.numel()
    return count * parameter.element_size()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

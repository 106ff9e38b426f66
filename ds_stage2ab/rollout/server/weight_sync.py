"""Sends the weights to the servers, in buckets of tensors, before rollouts are sampled.

Every learner rank takes part in every gather (ZeRO 3); rank 0 alone calls the servers. Per server: pause, empty the
caches, start, update, finish with the version, and resume in any case. The weights that train are not changed:
adapters are merged into copies, tensor by tensor. What does not train is sent until the probe has passed.
"""

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import Any, Protocol
from urllib.parse import urlsplit

from torch import Tensor, nn

from ds_stage2ab.carriers import Transfer
from ds_stage2ab.config.servers import GLOO_TRANSFER, NCCL_TRANSFER
from ds_stage2ab.errors import ServerFault
from ds_stage2ab.rollout.base import weight_version
from ds_stage2ab.rollout.server.api import ServerApi, as_server_fault
from ds_stage2ab.rollout.server.buckets import ExportTensor, buckets, split_by_training
from ds_stage2ab.rollout.server.gloo import SENDER, GlooLink
from ds_stage2ab.rollout.server.http_client import ClientError, ReadTimeout, ServerUnavailable
from ds_stage2ab.rollout.server.nccl import NcclLink, is_usable
from ds_stage2ab.rollout.server.versions import other_version, version_at
from ds_stage2ab.runtime.gloo import address_towards
from ds_stage2ab.runtime.ranks import World

HTTP_PORT = 80
LOOK_S = 0.5  # between two looks whether the run shall stop
LET_GO_S = 2.0  # longest wait until a server that failed goes on
SPARE_S = 5.0  # margin of a watched call above its own time-out


class ParameterProvider(Protocol):
    """Gathers single parameters of the model that trains, also under ZeRO 3; `engine.whole_model` does."""

    model: nn.Module

    def part(self, names: Collection[str], device: str, *, only_first: bool) -> AbstractContextManager[None]: ...


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
    version: str = ""
    # of the last transfer that it has completed; empty: of none of this learner's
    has_all: bool = False
    # every tensor has come over this link, and the probe has passed: it is sent what changes alone

    def forget(self) -> None:
        """Nothing is known any more of what it has."""
        self.version, self.has_all = "", False


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """Calls that run, each in a thread."""

    doing: str
    running: dict[Future[None], Target]
    # call -> of which server
    until: float
    # when they are late


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Tensors on their way to servers."""

    targets: Sequence[Target]
    num_bytes: int
    calls: Calls


class WeightSync:
    """Sends the learner's weights to the servers. One that fails is left out, and the others get them all the same.

    Args:
        provider: gathers the parameters that tensors are made from.
        tensors: all tensors to send, named as in a plain checkpoint.
        world: the learner ranks.
        start_id: first half of every version of this start.
        bucket_bytes: size of the tensors that are gathered and sent together.
        timeout_s: of a bucket, on both sides.
    """

    def __init__(
        self,
        provider: ParameterProvider,
        tensors: Callable[[], Sequence[ExportTensor]],
        world: World,
        *,
        start_id: str,
        bucket_bytes: int,
        timeout_s: float,
    ) -> None:
        self.provider = provider
        self.tensors = tensors
        self.world = world
        self.start_id = start_id
        self.bucket_bytes = bucket_bytes
        self.timeout_s = timeout_s
        self.last: Transfer | None = None  # the last transfer of this start
        self._sending: list[Target] = []  # those that have not failed in this transfer
        self._faults: dict[str, ServerFault] = {}
        self._on_its_way: Bucket | None = None

    def sync_weights(self, finished_steps: int, targets: Sequence[Target]) -> dict[str, ServerFault] | None:
        """Send the current weights to the servers that do not have them; collective.

        One that `has_all` gets what training changes, if it tells the version that it was sent last: it has been
        started by nobody, and sent nothing by anybody, since.

        Args:
            targets: the servers; rank 0's alone count.

        Returns:
            The faults of those that did not load them, by address, the same on every rank; None: all had them.
        """
        version, begun = weight_version(self.start_id, finished_steps), time.monotonic()
        behind = [one for one in targets if one.version != version] if self.world.rank == SENDER else []
        self._sending, self._faults, self._on_its_way = behind, {}, None
        try:
            with self.world.raise_together("preparing the servers for new weights", num_flags=4) as agreed:
                for target in behind:
                    self._try(target, self._prepare)
                uses_nccl = any(target.transfer == NCCL_TRANSFER for target in self._sending)
                agreed.flags = [len(behind), len(self._sending), uses_nccl, len(self._without_all())]
            if not agreed.flags[0]:
                return None
            device = self.world.device if agreed.flags[2] else "cpu"
            still, changing = split_by_training(self.tensors(), self.provider.model)
            num_bytes = self._send(still, self._without_all, device) if agreed.flags[3] else 0
            num_bytes += self._send(changing, lambda: self._sending, device) if agreed.flags[1] else 0
            with self.world.raise_together("finishing the transfer of the weights", num_flags=2) as agreed:
                num_bytes += self._arrived()
                for target in list(self._sending):
                    self._try(target, partial(self._finish, version))
                agreed.flags = [num_bytes, len(self._sending)]  # rank 0 alone knows
        except BaseException as error:  # whatever it is, no server stays paused
            for target in list(self._sending):
                self._drop(target, error)
            raise
        self._sending = []
        if agreed.flags[1]:
            self.last = Transfer(seconds=time.monotonic() - begun, num_bytes=agreed.flags[0])
        return self.world.broadcast_object(self._faults)

    def _without_all(self) -> list[Target]:
        return [target for target in self._sending if not target.has_all]

    def _send(self, tensors: Sequence[ExportTensor], to: Callable[[], list[Target]], device: str) -> int:
        """Send these to the servers that `to` names, fewer when one has failed.

        A bucket is gathered and made while the one before is on its way; the last one is when this returns.

        Returns:
            The bytes that each has got meanwhile.
        """
        num_bytes = 0
        for bucket in buckets(tensors, self.provider.model, self.bucket_bytes):
            needs = sorted({name for tensor in bucket for name in tensor.needs})
            with (
                self.world.raise_together("sending weights to the servers", num_flags=1) as agreed,
                self.provider.part(needs, device, only_first=True),
            ):
                made = [tensor.make().to(device).contiguous() for tensor in bucket] if to() else []
                num_bytes += self._arrived()
                if to():
                    self._on_its_way = self._broadcast([tensor.name for tensor in bucket], made, to())
                agreed.flags[0] = len(to())
            if not agreed.flags[0]:  # all have failed
                break
        return num_bytes

    def _try(self, target: Target, act: Callable[[Target], None]) -> None:
        """Do this to a target; if it fails, the transfer goes on without it."""
        try:
            act(target)
        except ServerFault as fault:
            self._drop(target, fault)

    def _drop(self, target: Target, error: BaseException) -> None:
        """Leave a target out, and let it go on: it must not stay paused. What it is asked may hang as it does."""
        if target not in self._sending:
            return
        self._sending = [one for one in self._sending if one is not target]
        target.link = None  # its workers see the connection close
        target.forget()
        if isinstance(error, ServerFault):
            self._faults[target.api.url] = error
        letting_go = Thread(target=_let_go_on, args=(target.api,), name="resume", daemon=True)
        letting_go.start()
        letting_go.join(timeout=LET_GO_S)

    def _prepare(self, target: Target) -> None:
        with as_server_fault(target.api.url, "pausing the server"):
            target.api.pause()
        if target.has_all and (seen := version_at(target.api)) != target.version:  # then nobody knows what it has
            raise other_version(target.api.url, seen, target.version)
        with as_server_fault(target.api.url, "emptying its caches"):
            target.api.clear_caches()
        target.version = ""
        if target.link is None and not self._connect(target):
            return
        with as_server_fault(target.api.url, "starting a weight update"):
            target.api.start_update(timeout_s=self.timeout_s)

    def _finish(self, version: str, target: Target) -> None:
        with as_server_fault(target.api.url, "finishing a weight update"):
            target.api.finish_update(version, timeout_s=self.timeout_s)
        with as_server_fault(target.api.url, "resuming the server"):
            target.api.resume()
        target.version = version

    def _connect(self, target: Target) -> bool:
        """Open the link, call the workers to it, and join; returns whether they have met."""
        target.link = self._link(target)
        call = partial(target.api.join_group, target.link.invitation(), timeout_s=self.timeout_s)
        calls = [(target, call), (target, target.link.join)]
        self._ended(self._begun("connecting for the transfer of weights", calls), meeting=True)
        return target in self._sending

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

    def _broadcast(self, names: list[str], tensors: list[Tensor], targets: Sequence[Target]) -> Bucket:
        """Begin to send tensors, which are kept until they have arrived."""
        shapes = [list(tensor.shape) for tensor in tensors]
        dtypes = [str(tensor.dtype).removeprefix("torch.") for tensor in tensors]
        calls: list[tuple[Target, Callable[[], None]]] = []
        for target in targets:
            calls.append((target, partial(target.api.update, names, dtypes, shapes, timeout_s=self.timeout_s)))
            calls.append((target, partial(target.link.send, tensors)))
        doing = f"sending {len(names)} tensors, the first {names[0]}"
        num_bytes = sum(tensor.nbytes for tensor in tensors)
        return Bucket(targets=targets, num_bytes=num_bytes, calls=self._begun(doing, calls))

    def _arrived(self) -> int:
        """Wait for the bucket that is on its way; returns the bytes that each server has got, 0 if all have failed."""
        bucket, self._on_its_way = self._on_its_way, None
        if bucket is None:
            return 0
        self._ended(bucket.calls)
        return bucket.num_bytes if any(target in self._sending for target in bucket.targets) else 0

    def _begun(self, doing: str, calls: Sequence[tuple[Target, Callable[[], None]]]) -> Calls:
        """Begin calls that wait for each other, each in a thread."""
        pool = ThreadPoolExecutor(max_workers=len(calls), thread_name_prefix="weights")
        running = {pool.submit(call): target for target, call in calls}
        pool.shutdown(wait=False)  # a call that is left behind ends by its own time-out
        return Calls(doing=doing, running=running, until=time.monotonic() + self.timeout_s + SPARE_S)

    def _ended(self, calls: Calls, *, meeting: bool = False) -> None:
        """Wait for calls; a target of which one fails is not waited for.

        Args:
            meeting: an error reply means that the workers cannot reach rank 0; else the reply says why.
        """
        running = {call: target for call, target in calls.running.items() if target in self._sending}
        while running:
            done, late = wait(running, timeout=LOOK_S, return_when=FIRST_COMPLETED)
            failed = [(running[one], one.exception(timeout=0)) for one in done if one.exception(timeout=0)]
            if time.monotonic() > calls.until:
                failed += [(running[one], TimeoutError(f"not done within {self.timeout_s:g} s")) for one in late]
            for target, error in failed:
                self._drop(target, _fault_of(calls.doing, error, target, meeting=meeting))
            running = {one: running[one] for one in late if running[one] in self._sending}
            self.world.check_stop()


def _fault_of(doing: str, error: BaseException, target: Target, *, meeting: bool) -> ServerFault:
    """The fault of a target of which a call has failed; it names where the workers meet rank 0."""
    place = target.link.place if target.link else "its address"
    fix = (
        f"the server's workers must reach rank 0 at {place} (a firewall?); look at the server's own log; a slow network"
        " may take a larger custom.extra.rollout_matching.vllm.sync.timeout_s"
    )
    if isinstance(error, RuntimeError | TimeoutError):
        fault = ServerFault(f"{doing}: {_first_line(error)}", where=target.api.url, fix=fix)
        fault.__cause__ = error
        return fault
    try:
        with as_server_fault(target.api.url, doing, fix=fix if meeting or isinstance(error, ReadTimeout) else ""):
            raise error
    except ServerFault as fault:
        return fault


def _let_go_on(server: ServerApi) -> None:
    server.abandon_update()
    with suppress(ServerUnavailable, ClientError):  # the first error is the one that is reported
        server.resume()


def usable_transfers(device: str) -> tuple[str, ...]:
    """The weight transfer engines that a learner on this device can send to."""
    return (NCCL_TRANSFER, GLOO_TRANSFER) if is_usable(device) else (GLOO_TRANSFER,)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

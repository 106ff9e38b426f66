"""The learner's end of vLLM's own `nccl` weight transfer engine: tensors go from GPU to GPU.

vLLM's workers get NCCL's unique id, made here, by HTTP, so neither side needs the other's package; both need the same
version of NCCL. Nothing here has been run on a GPU.
"""

import base64
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.cuda import nccl

from ds_stage2ab.rollout.server.gloo import SENDER

LOOK_S = 0.001
"""Seconds between two polls of the device."""


class NcclLink:
    """Sends to one server; see `weight_sync.Link`.

    Args:
        device: of this rank, "cuda:0".
        size: members of the group: this rank and the server's workers.
        timeout_s: of joining, and of every bucket.

    Raises:
        RuntimeError: NCCL cannot be used here.
    """

    place = "the address that NCCL chose (NCCL_SOCKET_IFNAME names the interface)"

    def __init__(self, device: str, size: int, timeout_s: float) -> None:
        self.device, self.size, self.timeout_s = device, size, timeout_s
        self._id: bytes = nccl.unique_id()
        self._comm: object = None

    def invitation(self) -> dict[str, Any]:
        """What the workers need to join."""
        return invitation(self._id, self.size)

    def join(self) -> None:
        """Wait for the workers; the caller watches, as NCCL has no time-out for this.

        vLLM's workers then all-reduce one number, and so must this rank.
        """
        with torch.cuda.device(self.device):
            self._comm = nccl.init_rank(self.size, self._id, SENDER)
            nccl.all_reduce([torch.zeros(1, device=self.device)], comms=[self._comm])
            self._wait()

    def send(self, tensors: Sequence[Tensor]) -> None:
        """Send the workers a bucket: one broadcast for each tensor.

        Raises:
            TimeoutError: the workers do not receive it in time.
        """
        with torch.cuda.device(self.device):
            kept = [tensor.to(self.device) for tensor in tensors]
            for tensor in kept:
                nccl.broadcast([tensor], SENDER, comms=[self._comm])
            self._wait()

    def _wait(self) -> None:
        done = torch.cuda.Event()
        done.record()
        last = time.monotonic() + self.timeout_s
        while not done.query():
            if time.monotonic() > last:
                raise TimeoutError(f"NCCL is not done within {self.timeout_s:g} s")
            time.sleep(LOOK_S)


def invitation(group_id: bytes, size: int) -> dict[str, Any]:
    """vLLM's `NCCLWeightTransferInitInfo`: workers follow the learner; one broadcast for each tensor.

    Args:
        group_id: NCCL's 128 bytes.
        size: members of the group.
    """
    encoded = base64.b64encode(group_id).decode()
    return {"nccl_unique_id_b64": encoded, "rank_offset": SENDER + 1, "world_size": size, "packed": False}


def is_usable(device: str) -> bool:
    """Whether this process can send from that device over NCCL."""
    return device.startswith("cuda") and torch.distributed.is_nccl_available()

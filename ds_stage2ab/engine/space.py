"""How much room a checkpoint takes on the disk, and how much memory its copies may take."""

import shutil
from pathlib import Path

import psutil
from torch import nn

from ds_stage2ab.errors import EnvironmentFault

FP32_BYTES = 4
GIB = 2**30
CGROUP = Path("/sys/fs/cgroup")
"""Of a container, whose limit psutil does not know."""
PAGE_CACHE = ("inactive_file", "active_file")
"""Fields of memory.stat; tmpfs, which cannot be given back, is in neither."""


def checkpoint_bytes(model: nn.Module, num_states: int) -> int:
    """Bytes of the tensors of a checkpoint: the exported weights, and of what trains fp32 copies.

    Args:
        model: its parameters are whole, or partitioned by ZeRO 3, which keeps their number of elements in `ds_numel`.
        num_states: fp32 tensors that are stored of each trained parameter: 3 with Adam, 0 without its state.
    """
    parameters = list(model.parameters())
    exported = sum(_numel(parameter) * parameter.element_size() for parameter in parameters)
    trained = sum(_numel(parameter) for parameter in parameters if parameter.requires_grad)
    return exported + trained * num_states * FP32_BYTES


def refuse_without_room(folder: Path, needed: int) -> None:
    """Raise EnvironmentFault if the disk of a folder has less room.

    Args:
        needed: bytes.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise EnvironmentFault(
            f"a checkpoint takes {needed / GIB:,.3g} GiB, and {free / GIB:,.3g} GiB are free",
            where=str(folder),
            fix="free space, set checkpoint.keep_last lower or checkpoint.engine_state: false; the checkpoints that are"
            " there are untouched",
        )


def free_memory(cgroup: Path = CGROUP) -> int:
    """Bytes of host memory that are free: the machine's, or what the limit of the control group (v2) leaves.

    The page cache of files counts towards the limit and is given back under pressure: what was written or read before,
    checkpoints first of all, takes nothing.
    """
    free = psutil.virtual_memory().available
    try:
        limit, used = (int((cgroup / name).read_text()) for name in ("memory.max", "memory.current"))
        counted = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        cached = sum(int(counted[name]) for name in PAGE_CACHE)
    except (OSError, ValueError, KeyError):  # there is no such file, or no limit ("max")
        return free
    return min(free, max(0, limit - used + cached))


def _numel(parameter: nn.Parameter) -> int:
    return parameter.ds_numel if hasattr(parameter, "ds_numel") else parameter.numel()

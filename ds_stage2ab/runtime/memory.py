"""Memory of this process: how much it has taken, and the errors that say that it has run out, in any library."""

import resource

import torch

KIB_IN_GIB = 2**20

SIGNS = (
    "DefaultCPUAllocator",  # torch, on the host
    "out of memory",  # CUDA ("CUDA error: out of memory"), and NCCL, which quotes it ("Cuda failure 2 'out of memory'")
    "_STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN, cuSPARSE, cuSOLVER, where they allocate for themselves
    "Failed to CUDA calloc",  # NCCL
)
"""In the texts of a RuntimeError, which torch raises for all but its own allocator on a device."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out, rather than that something is wrong."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def peak_gib(device: str) -> float:
    """The most memory that this process has taken so far, GiB: of its GPU as torch has reserved it, or of the host."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB_IN_GIB
    return torch.cuda.max_memory_reserved(device) / 2**30

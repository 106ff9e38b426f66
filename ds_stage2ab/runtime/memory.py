"""Recognises an error that says that memory has run out: the host's, or a device's in any of its libraries."""

import torch

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

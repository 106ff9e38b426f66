"""What the libraries of a GPU say when memory runs out, as they say it; and what sounds like it and is not."""

import pytest
import torch

from ds_stage2ab.errors import LostRanks
from ds_stage2ab.runtime.memory import is_out_of_memory
from ds_stage2ab.runtime.ranks import World

NCCL = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled cuda error (run with"
    " NCCL_DEBUG=INFO for details), NCCL version 2.27.7\nncclUnhandledCudaError: Call to CUDA function failed.\n"
    "Last error:\n"
)
SAID = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    f"{NCCL}Cuda failure 2 'out of memory'",
    f"{NCCL}Failed to CUDA calloc 10485760 bytes",
)
OTHERS = (
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`",
    f"{NCCL}Cuda failure 1 'invalid argument'",
    "Expected all tensors to be on the same device",
)


@pytest.mark.parametrize("text", SAID)
def test_memory_that_has_run_out(text):
    assert is_out_of_memory(RuntimeError(text))


@pytest.mark.parametrize("text", OTHERS)
def test_what_is_something_else(text):
    assert not is_out_of_memory(RuntimeError(text))


def test_the_kinds_of_errors():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(ValueError("out of memory"))  # of a text that quotes it


@pytest.fixture
def of_two(world):
    """One of two ranks, whose other one is not asked: it has no store."""
    two = object.__new__(World)
    two.__dict__.update(world.__dict__, size=2)
    return two


def test_nccl_without_memory_has_lost_no_rank(of_two):
    with pytest.raises(RuntimeError, match="out of memory"), of_two.collective():
        raise RuntimeError(SAID[4])
    with pytest.raises(LostRanks), of_two.collective():
        raise RuntimeError(OTHERS[1])

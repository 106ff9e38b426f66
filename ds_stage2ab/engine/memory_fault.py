"""Out of memory, in the words of the config: what did not fit, and which keys make it smaller."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ds_stage2ab.errors import OwnFault
from ds_stage2ab.plan import RunPlan

CPU_ALLOCATOR = "DefaultCPUAllocator"
"""In the text of the RuntimeError that torch raises when the host gives no more memory."""


@contextmanager
def memory_explained(rank: int, step: int, num_tokens: int, plan: RunPlan) -> Iterator[None]:
    """Around a forward and backward of a pack of so many tokens.

    Nothing is made smaller by itself: the effective batch size is what the user said.

    Raises:
        OwnFault: the device or the host has no memory left.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        exhausted = isinstance(error, MemoryError | torch.OutOfMemoryError) or CPU_ALLOCATOR in str(error)
        if not exhausted:
            raise
        raise OwnFault(
            f"rank {rank} is out of memory in step {step + 1}, in a pack of {num_tokens} tokens (packs hold up to"
            f" {plan.global_max_length}; {plan.batch_sentence}; ZeRO stage {plan.zero_stage})",
            fix="set training.global_max_length lower (data.max_pixels too, if a single sample is as long as a pack),"
            " or model.gradient_checkpointing to true, or deepspeed.zero_stage higher;"
            " none of them changes what a step learns",
        ) from error

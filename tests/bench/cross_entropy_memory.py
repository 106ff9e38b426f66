"""Cross entropy of bf16 logits forward and backward in a process of its own; prints the peak above the logits, bytes.

    python -m tests.bench.cross_entropy_memory in_blocks|at_once
"""

import resource
import sys
import time

import torch
import torch.nn.functional as F

from ds_stage2ab.losses.text import token_cross_entropy
from tests.bench.learner_memory import resident

ROWS, VOCABULARY = 1024, 152_000
LOGITS = 2 * ROWS * VOCABULARY  # bytes


def at_once(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.float(), targets, reduction="none")


def main(mode: str) -> None:
    logits = torch.full((ROWS, VOCABULARY), 0.5, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.arange(ROWS)
    function = token_cross_entropy if mode == "in_blocks" else at_once
    function(logits[:1], targets[:1]).sum().backward()  # libraries that load late
    logits.grad = None
    before, start = resident(), time.perf_counter()
    function(logits, targets).mean().backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{time.perf_counter() - start:.2f} {peak - before}")


if __name__ == "__main__":
    main(*sys.argv[1:])

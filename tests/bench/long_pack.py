"""A forward of a pack of TOKENS tokens in a process of its own; prints its seconds, and its peak memory in bytes.

    python -m tests.bench.long_pack now|before MODEL DATA

`before` builds the mask of the pack's length squared and ignores it, as transformers does by itself.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch

from ds_stage2ab.losses import attention
from ds_stage2ab.packs.collate import collate
from tests.bench.learner_memory import resident
from tests.parts import Quickstart
from tests.unit.parts import load_bench

TOKENS, REPEATS = 8192, 5


def make_pack(bench):
    """Samples over and over, as many as fit."""
    members, length = [], 0
    while True:
        for segment in bench.segments():
            if length + len(segment.input_ids) > TOKENS:
                return collate(members, num_passes=1)
            members.append(segment)
            length += len(segment.input_ids)


def main(mode: str, model: str, data: str) -> None:
    bench = load_bench(Quickstart(model=Path(model), plain=Path(model), data=Path(data)), num_samples=16)
    if mode == "before":
        attention.NO_MASK = None
    objective, pack = bench.objective(), make_pack(bench)
    before, seconds = resident(), []
    with torch.no_grad():
        for _ in range(REPEATS):
            start = time.perf_counter()
            objective(pack)
            seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"tokens": len(pack.input_ids), "seconds": min(seconds), "bytes": peak - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])

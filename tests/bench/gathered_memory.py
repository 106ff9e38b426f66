"""One of the ranks of a ZeRO 3 engine: gathers the whole model ROUNDS times, and writes the cost to OUT/rank-N.json.

    MALLOC_MMAP_THRESHOLD_=1000000 deepspeed --num_gpus 2 tests/bench/gathered_memory.py CONFIG OUT

Bytes: `weights` of the model, `largest` of its tensors; above what the process had before the first loan, the `peak` of
all rounds, `gathered` in the last, `left` after it.

The C library gives tensors above the threshold back as soon as they are free. By default it keeps them, and the holes
of DeepSpeed's gathers, those of every forward pass too, make the process larger than what is alive in it.
"""

import gc
import json
import sys
from pathlib import Path

import torch

from ds_stage2ab.config.load import load_config
from ds_stage2ab.engine.build import build_engine, build_optimizer, start_process_group
from ds_stage2ab.engine.whole_model import WholeModel
from ds_stage2ab.plan import make_plan
from ds_stage2ab.runtime.ranks import World
from ds_stage2ab.tools.tiny_model import TinySize, build_config, build_model, build_tokenizer

SIZE = TinySize(text_width=768, text_layers=20, text_mlp=2304, vision_width=96, vision_layers=4, vision_mlp=288)
ROUNDS = 3
PEAK_OF_NOW = "5"  # written to clear_refs: the kernel begins its record of the largest resident set again


def resident(name: str) -> int:
    """Bytes of this process: `VmRSS` now, or `VmHWM`, the most since the record began."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(kib) * 1024


def main(config_path: str, out: str) -> None:
    config = load_config(Path(config_path)).config
    world = World(start_process_group(600))
    model = build_model(build_config(build_tokenizer(), SIZE), seed=0)
    sizes = {name: parameter.nbytes for name, parameter in model.named_parameters()}
    sums = {name: parameter.sum().item() for name, parameter in model.named_parameters()}
    whole_model = WholeModel(model, world, is_partitioned=True)
    plan = make_plan(config, world.size, 64)
    engine = build_engine(model, build_optimizer(model, config.training), plan.deepspeed_config)
    gc.collect()
    kept = sum(parameter.ds_tensor.nbytes for parameter in engine.module.parameters())
    assert kept < 0.6 * sum(sizes.values()), "the weights are not shared out"
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text(PEAK_OF_NOW)
    for _ in range(ROUNDS):
        with whole_model() as whole:
            peak, now = resident("VmHWM"), resident("VmRSS")
            assert {name: parameter.sum().item() for name, parameter in whole.named_parameters()} == sums
    figures = {
        "weights": sum(sizes.values()),
        "largest": max(sizes.values()),
        "peak": peak - before,
        "gathered": now - before,
        "left": resident("VmRSS") - before,
    }
    (Path(out) / f"rank-{world.rank}.json").write_text(json.dumps(figures))
    world.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*(word for word in sys.argv[1:] if not word.startswith("--local_rank")))

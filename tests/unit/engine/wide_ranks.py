"""One of two ranks of a ZeRO 3 engine around three tensors of LARGE bytes, where one rank fails and the other does not.

wide_ranks.py CONFIG MODEL CHECKPOINTS ROOM: rank 0 makes its first checkpoint with memory for ROOM such tensors. To
gather one takes two, as does a copy of it; to merge a layer's adapter takes three. Prints what it saw, as JSON.
"""

import ctypes
import json
import resource
import sys
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from transformers import Qwen2VLImageProcessorPil

from ds_stage2ab.config.load import load_config
from ds_stage2ab.engine import checkpoint
from ds_stage2ab.engine.build import build_engine, build_optimizer, start_process_group
from ds_stage2ab.engine.tuner import add_adapters
from ds_stage2ab.engine.whole_model import WholeModel
from ds_stage2ab.errors import LocalFault, Stage2Error
from ds_stage2ab.plan import make_plan
from ds_stage2ab.runtime.ranks import World
from ds_stage2ab.runtime.shutdown import exit_now
from ds_stage2ab.tools.tiny_model import TinySize, build_config, build_model, build_tokenizer
from tests.unit.engine.saving import save, section

TIMEOUT_S = 40
M_ARENA_MAX = -8  # of malloc.h
SIZE = TinySize(text_layers=1, text_mlp=1 << 17)  # the C library gives tensors of this size back when they are free
LARGE = SIZE.text_mlp * SIZE.text_width * 4
NOWHERE = "xla"  # a device that no build of torch has by itself

export = checkpoint.export


def main(config_path: str, source: str, folder: str, room: str) -> None:
    config = load_config(Path(config_path)).config
    world = World(start_process_group(TIMEOUT_S))
    model = build_model(build_config(build_tokenizer(), SIZE), seed=0)
    add_adapters(model, config.tuner, (), (), seed=0, source=Path(source))
    sums = sums_of(model)
    whole_model = WholeModel(model, world, is_partitioned=True)
    plan = make_plan(config, world.size, 64)
    engine = build_engine(model, build_optimizer(model, config.training), plan.deepspeed_config)
    processor = Qwen2VLImageProcessorPil.from_pretrained(source)
    parts = (Path(folder), Path(source), processor, engine, whole_model, world)
    checkpoints = checkpoint.Checkpoints(*parts, section=section(), warn=print)
    seen = {"gathered": gathered(whole_model, list(sums), world)}
    with whole_model() as whole:
        seen["whole"] = sums_of(whole) == sums
    seen["given back"] = not any(parameter.numel() for parameter in whole_model.layout.parameters())
    checkpoint.export = partial(export_in, int(float(room) * LARGE))
    try:
        save(checkpoints, 1)
    except Stage2Error as error:
        seen["saved"] = [type(error).__name__, error.why]
        if isinstance(error, LocalFault):
            print(json.dumps(seen))
            exit_now(error.code)
    checkpoint.export = export
    save(checkpoints, 2)
    print(json.dumps(seen))
    world.close()


def sums_of(model):
    return {name: parameter.sum().item() for name, parameter in model.named_parameters()}


def gathered(whole_model, names, world):
    """What comes out of a loan that rank 1 has no place for."""
    try:
        with world.raise_together("lending"), whole_model.part(names, NOWHERE if world.rank == 1 else "cpu"):
            return "all"
    except (Stage2Error, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def export_in(room, whole_model, *words):
    with may_grow(room) if whole_model.world.rank == 0 else nullcontext():
        export(whole_model, *words)


@contextmanager
def may_grow(room):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


if __name__ == "__main__":
    # An arena more, which the C library makes for a thread now and then, takes as much of the room as a tensor.
    ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
    torch.set_num_threads(1)
    main(*sys.argv[1:])

"""Saves a model of 100 million parameters with the state of AdamW, and writes what that took to OUT.

    python -m tests.bench.checkpoint_pause CONFIG SOURCE FOLDER OUT

Seconds, medians of REPEATS turns: `save` holds up the loop, `complete` is what follows beside the next steps; `export`
alone; `copy` of what is stored of the training to memory. What going on from it adds to a fresh start: `digests`, every
file read and compared, and `load` of the weights and the optimizer's state into a model and engine that are there.
"""

import json
import shutil
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import Qwen2VLImageProcessorPil

from ds_stage2ab.config.load import load_config
from ds_stage2ab.engine.build import build_engine, build_optimizer, start_process_group
from ds_stage2ab.engine.checkpoint import Checkpoints
from ds_stage2ab.engine.export import export
from ds_stage2ab.engine.resume import choose
from ds_stage2ab.engine.start import Start
from ds_stage2ab.engine.training_state import restore_optimizer, restore_weights, state_tensors
from ds_stage2ab.engine.whole_model import WholeModel
from ds_stage2ab.plan import make_plan
from ds_stage2ab.runtime.ranks import World, fill_launcher_variables
from ds_stage2ab.runtime.shutdown import exit_now
from ds_stage2ab.tools.tiny_model import TinySize, build_config, build_model, build_tokenizer
from tests.unit.engine.saving import section

SIZE = TinySize(text_width=768, text_layers=16, text_mlp=2304, vision_width=96, vision_layers=4, vision_mlp=288)
REPEATS = 5


def main(config_path: str, source: str, folder: str, out: str) -> None:
    fill_launcher_variables()
    config = load_config(Path(config_path)).config
    world = World(start_process_group(600))
    model = build_model(build_config(build_tokenizer(), SIZE), seed=0)
    engine = build_engine(model, build_optimizer(model, config.training), make_plan(config, 1, 64).deepspeed_config)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    engine.optimizer.step()  # now there is a state to be saved
    whole_model = WholeModel(model, world, is_partitioned=False)
    processor = Qwen2VLImageProcessorPil.from_pretrained(source)
    parts = (Path(folder) / "checkpoints", Path(source), processor, engine, whole_model, world)
    checkpoints = Checkpoints(*parts, section=section(), warn=print)
    seen: dict[str, list[float]] = {}

    def timed(name, call):
        begun = time.perf_counter()
        call()
        seen.setdefault(name, []).append(time.perf_counter() - begun)

    for turn in range(REPEATS):
        step = turn + 1
        timed("save", lambda step=step: checkpoints.save(step))
        timed("complete", checkpoints.settle)
        timed("export", lambda: export(whole_model, Path(source), processor, Path(folder) / "export"))
        shutil.rmtree(Path(folder) / "export")
        timed("copy", lambda: [tensor.clone() for _, tensor in state_tensors(engine, model)])
        timed("digests", lambda: choose("latest", checkpoints.folder))
        start = Start(resumes=True, saved=choose("latest", checkpoints.folder, digests=False)[0])
        timed("load", lambda start=start: load(engine, model, start))
    figures = {name: statistics.median(values) for name, values in seen.items()}
    figures["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    Path(out).write_text(json.dumps(figures))
    exit_now(0)


def load(engine, model, start):
    restore_weights(model, start.tensors)
    restore_optimizer(engine, model, start.tensors, updates=1)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A step of Channel A in one answer format, in a process of its own: prints tokens, CPU seconds and memory.

    python -m tests.bench.form_step array|compact MODEL DATA

The last line is a JSON object; memory is the peak above the loaded model, in bytes.
"""

import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from random import Random

from ds_stage2ab.channels.expectation import Expectation
from ds_stage2ab.codec.text import get_codec
from ds_stage2ab.engine.build import position_index
from ds_stage2ab.packs.collate import collate
from ds_stage2ab.runtime.timers import Clock
from tests.bench.decoding_memory import memory
from tests.bench.test_form_tokens import random_scene
from tests.parts import Quickstart
from tests.unit.parts import load_bench

SAMPLES, REPEATS = 8, 5


def main(form: str, model: str, data: str) -> None:
    bench = load_bench(Quickstart(model=Path(model), plain=Path(model), data=Path(data)), num_samples=SAMPLES)
    samples = [replace(one, objects=tuple(random_scene(Random(one.draw)))) for one in bench.samples]
    settings = {"num_passes": 1, "desc_ce_weight": 1.0, "max_length": 4096, "skip_overlong": False}
    channel = Expectation(get_codec(form), bench.vocabulary, position_index(bench.model), **settings)
    pack = collate(list(channel.segments(samples, step=0, clock=Clock())), num_passes=1)
    objective, seconds = bench.objective(), []
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    for _ in range(REPEATS):
        start = time.process_time()
        objective(pack)[0].backward()
        seconds.append(time.process_time() - start)
    answers = len(pack.input_ids) - sum(len(one.prompt_ids) for one in samples)
    figures = {"tokens": answers, "seconds": statistics.median(seconds), "bytes": memory("VmHWM") - before}
    print(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Draws the slots of one B step over its passes, and what a larger `decode_batch_size` brings.

    python -m tests.bench.decoding_pictures docs/pictures
"""

import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt

from ds_stage2ab.carriers import Rollout, Sample
from ds_stage2ab.codec.text import CODECS
from ds_stage2ab.data.records import read_records
from ds_stage2ab.engine.build import position_index
from ds_stage2ab.rollout.decoding.drafts import Drafter, true_answer
from ds_stage2ab.rollout.hf import HfBackend
from ds_stage2ab.tools.digit_scenes import Layout, generate
from tests.parts import ROOT, Quickstart
from tests.unit.parts import Bench, greedy_sampling, load_bench

SIZES = (1, 4, 8, 16, 32)
SCENES, TURNS = 48, 3
STEP_SAMPLES, STEP_SLOTS = 16, 4
CODEC = CODECS["array"]
Span = tuple[int, int, int]
"""(slot, first pass, passes)."""


def answered(bench: Bench, samples: list[Sample], size: int) -> tuple[HfBackend, list[Rollout], float]:
    """With a new backend; the CPU seconds that it took."""
    settings = {"decode_batch_size": size, "start_id": "bench", "seed": 0, "codec": CODEC}
    backend = HfBackend(lambda: nullcontext(bench.model), bench.vocabulary, position_index(bench.model), **settings)
    start = time.process_time()
    with backend.current_weights(0):
        rollouts = backend.generate(samples, greedy_sampling(max_new_tokens=256), finished_steps=0)
    return backend, rollouts, time.process_time() - start


def in_slots(passes: list[int], slots: int) -> list[Span]:
    """Each request where the loop puts it: in the slot that is free first."""
    free, spans = [0] * slots, []
    for number in passes:
        slot = min(range(slots), key=free.__getitem__)
        spans.append((slot, free[slot], number))
        free[slot] += number
    return spans


def in_chunks(passes: list[int], slots: int) -> list[Span]:
    """As `generate` takes them: the next chunk waits for the longest answer of this one."""
    spans, first = [], 0
    for place in range(0, len(passes), slots):
        chunk = passes[place : place + slots]
        spans += [(slot, first, number) for slot, number in enumerate(chunk)]
        first += max(chunk)
    return spans


def drafted_passes(bench: Bench, sample: Sample, rollout: Rollout) -> int:
    """Passes of an answer that is known, drafted from the true one."""
    drafter = Drafter(true_answer(sample, bench.vocabulary, CODEC), bench.vocabulary.coordinate_bins, 4)
    left, passes = [*rollout.response_ids, bench.vocabulary.stop_id], 0
    while left:
        taken = 1
        for token, drafted in zip(left, drafter.propose(), strict=False):
            if token != drafted or taken == len(left):
                break
            taken += 1
        drafter.read(left[:taken])
        left, passes = left[taken:], passes + 1
    return passes


def in_turn(samples: list[Sample], passes: list[int]) -> list[int]:
    """As the loop takes them: those of the samples with the most objects first."""
    return [passes[place] for place in sorted(range(len(samples)), key=lambda place: -len(samples[place].objects))]


def draw_slots(bench: Bench, samples: list[Sample], path: Path) -> None:
    backend, rollouts, _ = answered(bench, samples, STEP_SLOTS)
    tokens = [len(rollout.response_ids) + (rollout.finish == "stop") for rollout in rollouts]
    drafted = [drafted_passes(bench, *pair) for pair in zip(samples, rollouts, strict=True)]
    assert sum(drafted) == backend.decoding.live
    panels = {
        "generate, chunk after chunk": in_chunks(tokens, STEP_SLOTS),
        "slots that refill": in_slots(in_turn(samples, tokens), STEP_SLOTS),
        "slots that refill, and drafts": in_slots(in_turn(samples, drafted), STEP_SLOTS),
    }
    figure, axes = plt.subplots(len(panels), 1, figsize=(7, 4.2), sharex=True, layout="constrained")
    for axis, (title, spans) in zip(axes, panels.items(), strict=True):
        for place, (slot, first, number) in enumerate(spans):
            axis.barh(slot, number, left=first, height=0.8, color=f"C{place % 10}", edgecolor="white")
        last = max(first + number for _, first, number in spans)
        axis.set_title(f"{title}: {last} passes", loc="left", fontsize=9)
        axis.set_yticks(range(STEP_SLOTS), [f"slot {slot}" for slot in range(STEP_SLOTS)], fontsize=7)
        axis.invert_yaxis()
    axes[-1].set_xlabel(f"passes; each bar is one of {len(samples)} answers")
    figure.savefig(path, dpi=110)


def draw_sizes(bench: Bench, samples: list[Sample], path: Path) -> None:
    seconds, passes, tokens = {size: [] for size in SIZES}, {}, 0
    for _ in range(TURNS):
        for size in SIZES:
            backend, _, took = answered(bench, samples, size)
            seconds[size].append(took)
            passes[size], tokens = backend.decoding.passes, backend.decoding.tokens
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
    names = [str(size) for size in SIZES]
    bars = left.bar(names, [tokens / statistics.median(seconds[size]) for size in SIZES], color="#4477aa")
    left.bar_label(bars, fmt="%.0f", fontsize=7)
    left.set_ylabel("tokens per CPU second")
    bars = right.bar(names, [passes[size] for size in SIZES], color="#ccbb44")
    right.bar_label(bars, fontsize=7)
    right.set_ylabel("passes")
    for axis in (left, right):
        axis.set_xlabel("decode_batch_size")
    figure.savefig(path, dpi=110)


def main(folder: Path) -> None:
    with TemporaryDirectory() as temporary:
        data, checkpoint = Path(temporary) / "data", ROOT / "assets" / "quickstart" / "stage1"
        layout = Layout(max_digits=5, min_height=34, max_side=112)
        generate(data, seed=7, train_scenes=1, validation_scenes=SCENES, layout=layout)
        bench = load_bench(Quickstart(model=checkpoint, plain=checkpoint, data=data), num_samples=0)
        records = read_records(data / "validation.jsonl", image_root=None, box_format="bins")
        samples = [bench.encoder.encode(record, place) for place, record in enumerate(records)]
        draw_slots(bench, samples[:STEP_SAMPLES], folder / "slots.png")
        draw_sizes(bench, samples, folder / "decode_batch.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

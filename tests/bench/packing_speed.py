"""Learner tokens per second at different caps on the length of a pack, the same samples in each; draws the plot.

    python -m tests.bench.packing_speed docs/pictures/packing.png
"""

import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt

from ds_stage2ab.packs.collate import make_packs
from tests.parts import ROOT, build_quickstart
from tests.unit.parts import Bench, load_bench

NUM_SAMPLES = 64
CAPS = (None, 256, 512, 1024, 2048, 4096)
"""Tokens of a pack; None: one segment each."""
TURNS = 5


def tokens_per_second(bench: Bench) -> dict[int | None, float]:
    """Median over several turns, in which all caps take part one after the other."""
    objective, segments = bench.objective(), bench.segments()
    total = sum(len(segment.input_ids) for segment in segments)
    packs = {cap: _packs(segments, cap) for cap in CAPS}
    seconds = {cap: [] for cap in CAPS}
    for _ in range(TURNS):
        for cap, made in packs.items():
            start = time.perf_counter()
            for pack in made:
                objective(pack)[0].backward()
            seconds[cap].append(time.perf_counter() - start)
    return {cap: total / statistics.median(turns) for cap, turns in seconds.items()}


def _packs(segments, cap):
    settings = {"capacity": cap or 4096, "packing": cap is not None, "online": False, "num_passes": 1}
    return [pack for pack, _ in make_packs(segments, **settings)]


def draw(speeds: dict[int | None, float], path: Path) -> None:
    """Speed beside that of one segment per pack."""
    alone = speeds[None]
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    labels = ["one segment" if cap is None else f"{cap:,}" for cap in speeds]
    bars = axes.bar(labels, [speed / alone for speed in speeds.values()], color="#4477aa")
    axes.bar_label(bars, fmt="%.2f", label_type="center", color="white")
    axes.axhline(1, color="gray", linewidth=0.8, linestyle="--", zorder=0)
    axes.set(xlabel="cap on a pack, tokens", ylabel="tokens/s, one segment per pack = 1")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.15)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(path: Path) -> None:
    with TemporaryDirectory() as folder:
        parts = replace(build_quickstart(Path(folder)), model=ROOT / "assets" / "quickstart" / "stage1")
        speeds = tokens_per_second(load_bench(parts, num_samples=NUM_SAMPLES))
    for cap, speed in speeds.items():
        print(f"{cap or 'one segment'}: {speed:,.0f} tokens/s, {speed / speeds[None]:.2f}")
    draw(speeds, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

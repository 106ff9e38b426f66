"""Detection scenes composed from scikit-learn's 1,797 real handwritten digits.

`python -m ds_stage2ab.tools.digit_scenes --out DIR` writes `train.jsonl`, `validation.jsonl` and `images/*.png`.

Invariants:
- A scan belongs to training or to validation for ever: the split does not depend on any option.
- A scene is a function of (seed, split, index, layout) alone.
- Image sides are multiples of 16 (patch 8 x merge 2) from 80 to 112, so a Qwen3-VL processor resamples nothing.
- A box touches the first and last row and column of the digit's visible ink, in bins 0..999.

Shapes: a scan is [8, 8] in 0..16, a glyph [h, w] of coverage in 0..1, a scene [height, width] of brightness
in 0..1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

from ds_stage2ab.tools.scene_files import (
    SPLITS,
    make_scenes,
    scene_options,
    scene_rng,
    tight_box,
    to_bins,
    write_data_set,
)

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDES = (80, 96, 112)  # multiples of 16; small enough that a laptop trains on them
COUNT_SHARES = (0.03, 0.36, 0.36, 0.17, 0.05, 0.03)  # share of scenes with 0, 1, ... 5 digits
INK = 0.5  # a pixel shows a digit where the digit has at least half of its contrast
MIN_VISIBLE = 0.8  # least share of a digit's ink that later digits may leave visible
MAX_TRIES = 40  # random places tried per digit before it is left out
SPLIT_SEED = 1797  # fixed: a model trained on one data set may be evaluated on another
VALIDATION_SHARE = 0.2
MANIFEST = "digits.json"
GENERATOR_VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """One handwritten digit. `pixels` [8, 8] in 0..16; `index` is its row in `load_digits`."""

    index: int
    label: int
    pixels: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What scenes may look like. A model learns names first where one digit fills a small picture."""

    max_digits: int
    min_height: int
    # of a digit with its margin, pixels
    max_side: int
    # of a picture, pixels


@dataclass(slots=True, kw_only=True)
class Scene:
    """A picture under construction. `brightness` [height, width]; `ink[i]` bool [height, width] is what is visible of
    digit i, `scans[i]` the scan that it shows."""

    brightness: np.ndarray
    ink: list[np.ndarray] = field(default_factory=list)
    scans: list[Scan] = field(default_factory=list)


def split_scans() -> dict[str, list[Scan]]:
    """All scans by split, in a fixed random order with the same share of every digit in both splits."""
    bundle = load_digits()
    rng = np.random.default_rng(SPLIT_SEED)
    splits: dict[str, list[Scan]] = {name: [] for name in SPLITS}
    for label in range(len(NAMES)):
        rows = rng.permutation(np.flatnonzero(bundle.target == label))
        num_validation = round(VALIDATION_SHARE * len(rows))
        for place, row in enumerate(rows):
            name = "validation" if place < num_validation else "train"
            splits[name].append(Scan(index=int(row), label=label, pixels=bundle.images[row]))
    return splits


def glyph(scan: Scan, height: int, width: int, gain: float, threshold: float) -> np.ndarray:
    """The scan's ink enlarged to [height, width] coverage; a lower `threshold` (0..1) makes strokes thicker."""
    inked = scan.pixels >= 4
    rows, columns = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
    cut = scan.pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    small = Image.fromarray(np.pad(cut, 1).astype(np.float32) / 16.0, mode="F")
    large = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
    return np.clip((large - threshold) * gain + 0.5, 0.0, 1.0)


def background(rng: np.random.Generator, height: int, width: int, level: float) -> np.ndarray:
    """Clutter to hide digits in: a linear gradient and up to three faint strokes around brightness `level`."""
    angle = rng.uniform(0.0, 2.0 * np.pi)
    ys, xs = np.mgrid[0:height, 0:width]
    slope = np.cos(angle) * (xs / width - 0.5) + np.sin(angle) * (ys / height - 0.5)
    canvas = Image.new("F", (width, height), 0.0)
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(0, 4)):
        ends = [float(v) for v in rng.uniform(0.0, 1.0, 4) * (width, height, width, height)]
        draw.line(ends, fill=float(rng.uniform(-0.2, 0.2)), width=int(rng.integers(1, 3)))
    return level + rng.uniform(0.0, 0.2) * slope + np.asarray(canvas)


def digit_height(rng: np.random.Generator, num_digits: int, smaller_side: int, min_height: int) -> int:
    """Height in pixels, a fifth of it margin: up to 72, less where several digits share a small picture."""
    largest = smaller_side * (0.75, 0.65, 0.55, 0.48, 0.44)[num_digits - 1]
    return int(rng.integers(min_height, int(max(min_height + 2.0, min(72.0, largest))) + 1))


def place(rng: np.random.Generator, scene: Scene, scan: Scan, tall: int, contrast: float) -> None:
    """Draw `scan` at a random free place, over what is there; if none of MAX_TRIES leaves enough ink of the digits
    below visible, draw nothing."""
    height, width = scene.brightness.shape
    wide = int(np.clip(tall * rng.uniform(0.65, 0.95), 22, width))
    coverage = glyph(scan, tall, wide, gain=3.0, threshold=float(rng.uniform(0.38, 0.55)))
    for _ in range(MAX_TRIES):
        top, left = int(rng.integers(0, height - tall + 1)), int(rng.integers(0, width - wide + 1))
        drawn = np.zeros((height, width))
        drawn[top : top + tall, left : left + wide] = coverage
        mask = drawn >= INK
        rest = [ink & ~mask for ink in scene.ink]
        hidden = any(r.sum() < MIN_VISIBLE * i.sum() for r, i in zip(rest, scene.ink, strict=True))
        x1, y1, x2, y2 = tight_box(mask)
        crowded = any(i[y1 : y2 + 1, x1 : x2 + 1].sum() > (1.0 - MIN_VISIBLE) * i.sum() for i in scene.ink)
        if hidden or crowded:
            continue
        scene.brightness = scene.brightness + drawn * contrast
        scene.ink = [*rest, mask]
        scene.scans.append(scan)
        return


def compose(rng: np.random.Generator, scans: list[Scan], layout: Layout, clutter: bool = True) -> Scene:
    """One scene; without clutter the paper is black."""
    height, width = (int(side) for side in rng.choice([side for side in SIDES if side <= layout.max_side], 2))
    shares = np.array(COUNT_SHARES[: layout.max_digits + 1])
    num_digits = int(rng.choice(len(shares), p=shares / shares.sum()))
    paper = rng.uniform(0.05, 0.3) if clutter else 0.0
    brightness = background(rng, height, width, paper) if clutter else np.full((height, width), paper)
    scene = Scene(brightness=brightness)
    for _ in range(num_digits):
        scan = scans[int(rng.integers(len(scans)))]
        tall = digit_height(rng, num_digits, min(height, width), layout.min_height)
        place(rng, scene, scan, tall, float(rng.uniform(0.45, 0.7)))
    if clutter:
        scene.brightness = scene.brightness + rng.normal(0.0, rng.uniform(0.0, 0.05), (height, width))
    return scene


def record_of(scene: Scene, image: str, name: str) -> dict[str, object]:
    """The JSONL record of a scene: objects in (y1, x1) order, boxes in bins."""
    height, width = scene.brightness.shape
    objects = []
    for scan, ink in zip(scene.scans, scene.ink, strict=True):
        objects.append({"desc": NAMES[scan.label], "bbox_2d": to_bins(tight_box(ink), width, height)})
    objects.sort(key=lambda item: (item["bbox_2d"][1], item["bbox_2d"][0]))
    return {"id": name, "images": [image], "width": width, "height": height, "objects": objects}


def to_image(scene: Scene) -> Image.Image:
    """The scene as an 8-bit grey picture."""
    return Image.fromarray(np.round(np.clip(scene.brightness, 0.0, 1.0) * 255.0).astype(np.uint8), mode="L")


def write_scene(index: int, folder: Path, split: str, scans: list[Scan], seed: int, layout: Layout) -> str:
    """Write one picture into `folder`; returns its line of the JSONL."""
    scene = compose(scene_rng(seed, split, index), scans, layout)
    name = f"{split}-{index:06d}"
    to_image(scene).save(folder / "images" / f"{name}.png", compress_level=1)
    return json.dumps(record_of(scene, f"images/{name}.png", name)) + "\n"


def generate(
    out: Path,
    *,
    seed: int,
    train_scenes: int,
    validation_scenes: int,
    layout: Layout,
    advance: Callable[[], None] = lambda: None,
) -> bool:
    """Make the data set in `out`, whole or not at all. False: exactly this data set was there already.

    Args:
        advance: called after each scene that is written.
    """
    manifest = {
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "train_scenes": train_scenes,
        "validation_scenes": validation_scenes,
        **asdict(layout),
    }
    counts = dict(zip(SPLITS, (train_scenes, validation_scenes), strict=True))
    writers = {
        split: partial(write_scene, split=split, scans=scans, seed=seed, layout=layout)
        for split, scans in split_scans().items()
    }
    return write_data_set(out, MANIFEST, manifest, counts, writers, advance)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    command = "python -m ds_stage2ab.tools.digit_scenes"
    parser = argparse.ArgumentParser(prog=command, description=__doc__.splitlines()[0])
    parser.add_argument("--max-digits", type=int, default=5, choices=range(1, 6))
    parser.add_argument("--min-height", type=int, default=34, choices=range(24, 61), metavar="PIXELS")
    parser.add_argument("--max-side", type=int, default=max(SIDES), choices=SIDES)
    options = scene_options(parser, arguments)
    layout = Layout(max_digits=options.max_digits, min_height=options.min_height, max_side=options.max_side)
    return make_scenes(options, partial(generate, layout=layout))


if __name__ == "__main__":
    sys.exit(main())

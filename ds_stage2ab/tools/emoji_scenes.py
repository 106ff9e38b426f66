"""Dense detection scenes of coloured drawings: 5 to 20 pieces of food and plants of the Noto Color Emoji font.

`python -m ds_stage2ab.tools.emoji_scenes --out DIR` writes `train.jsonl`, `validation.jsonl` and `images/*.png`.

Invariants:
- A scene is a function of (seed, split, index) and the font alone.
- No height, angle or colour shift of a drawing is in both splits, and their backgrounds are of two kinds.
- A box touches the first and last row and column of what later drawings leave visible of its drawing, in bins 0..999.
- A name is the character's own of one to three words in Unicode, so there is one for each drawing.
- Image sides are multiples of 16 (patch 8 x merge 2) from 160 to 192, so a Qwen3-VL processor resamples nothing.

Shapes: a drawing is [h, w, 4] (red, green, blue, coverage) in 0..1, a scene [height, width, 3] in 0..1.
"""

from __future__ import annotations

import argparse
import colorsys
import hashlib
import json
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ds_stage2ab.errors import EnvironmentFault
from ds_stage2ab.tools.scene_files import (
    SPLITS,
    make_scenes,
    scene_options,
    scene_rng,
    tight_box,
    to_bins,
    write_data_set,
)

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
INSTALL = "install it (Debian, Ubuntu: fonts-noto-color-emoji), or name its file: --font path/to/NotoColorEmoji.ttf"
FONT_SIZE = 109  # pixels: the one size of the font's bitmaps
FOOD_AND_PLANTS = range(0x1F32D, 0x1F380)  # from "hot dog" to "popcorn" and "bottle with popping cork"
MOST_WORDS = 3
SIDES = (160, 176, 192)
COUNTS = (5, 20)  # drawings that a scene is to have, both included
COVERED = 0.5  # a pixel shows a drawing where that covers at least half of it
MIN_VISIBLE = 0.8  # least share of a drawing that later ones may leave visible, together
MAX_TRIES = 40  # random places tried per drawing before it is left out
MIN_LEFT = 5  # a scene with fewer drawings is composed again
HEIGHTS = {"train": (24, 28, 32, 36, 40), "validation": (26, 30, 34, 38)}  # pixels of the longer side
ANGLES = {"train": (-24, -12, 0, 12, 24), "validation": (-18, -6, 6, 18)}  # degrees, counter-clockwise
HUES = {"train": (-0.04, 0.0, 0.04), "validation": (-0.02, 0.02)}  # turns of the colour wheel
LIGHTS = {"train": (0.8, 1.0), "validation": (0.7, 0.9)}  # factors of the drawing's brightness
MANIFEST = "emoji.json"
GENERATOR_VERSION = 1


@dataclass(slots=True, kw_only=True)
class Scene:
    """A picture under construction. `colours` [height, width, 3]; `covered[i]` bool [height, width] is what is visible
    of drawing i, `whole[i]` how many pixels that was before later ones, `names[i]` its name."""

    colours: np.ndarray
    covered: list[np.ndarray] = field(default_factory=list)
    whole: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


def drawings() -> dict[str, str]:
    """Name -> character, in Unicode's order."""
    characters = map(chr, FOOD_AND_PLANTS)
    named = {unicodedata.name(one, "").lower(): one for one in characters}
    return {name: one for name, one in named.items() if name and len(name.replace("-", " ").split()) <= MOST_WORDS}


def read_font(path: Path) -> ImageFont.FreeTypeFont:
    """The font of the drawings.

    Raises:
        EnvironmentFault: there is none, or it is no such font.
    """
    if not path.is_file():
        raise EnvironmentFault("there is no Noto Color Emoji font", where=str(path), fix=INSTALL)
    try:
        return ImageFont.truetype(path, FONT_SIZE)
    except OSError as error:
        why = f"is no font with drawings of {FONT_SIZE} pixels"
        raise EnvironmentFault(why, where=str(path), fix=INSTALL) from error


def check_drawings(path: Path) -> None:
    """Raises EnvironmentFault unless the font draws every name, and most of them in colour (a fork has none)."""
    coloured = 0
    for name, character in drawings().items():
        pixels = np.asarray(glyph(path, character), dtype=np.int64)
        if not pixels[..., 3].any():
            raise EnvironmentFault(f"has no drawing of {name}", where=str(path), fix=INSTALL)
        coloured += bool(np.ptp(pixels[..., :3], axis=2).any())
    if 2 * coloured < len(drawings()):
        raise EnvironmentFault("has no coloured drawings", where=str(path), fix=INSTALL)


@cache
def glyph(font: Path, character: str) -> Image.Image:
    """The drawing of a character, RGBA, without its margin; empty where the font has none."""
    canvas = Image.new("RGBA", (2 * FONT_SIZE, 2 * FONT_SIZE))
    corner = FONT_SIZE // 4, FONT_SIZE // 4
    ImageDraw.Draw(canvas).text(corner, character, font=read_font(font), embedded_color=True)
    return canvas.crop(canvas.getbbox())


def drawing(rng: np.random.Generator, plain: Image.Image, split: str) -> np.ndarray:
    """The drawing turned, shifted in colour and scaled by values of the split: [h, w, 4] in 0..1."""
    tall, angle = int(rng.choice(HEIGHTS[split])), float(rng.choice(ANGLES[split]))
    turned = plain.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    turned = turned.crop(turned.getbbox())
    scale = tall / max(turned.size)
    size = max(8, round(turned.width * scale)), max(8, round(turned.height * scale))
    pixels = np.asarray(turned.resize(size, Image.Resampling.BOX), dtype=np.float64) / 255.0
    hue, light = float(rng.choice(HUES[split])), float(rng.choice(LIGHTS[split]))
    colours = np.clip(pixels[..., :3] @ hue_turn(hue).T, 0.0, 1.0) * light
    return np.concatenate([colours, pixels[..., 3:]], axis=2)


def hue_turn(turns: float) -> np.ndarray:
    """[3, 3] matrix that turns colours around the grey axis (Rodrigues' formula)."""
    angle = 2.0 * np.pi * turns
    axis = np.full(3, 1.0 / np.sqrt(3.0))
    across = np.array([[0.0, -axis[2], axis[1]], [axis[2], 0.0, -axis[0]], [-axis[1], axis[0], 0.0]])
    return np.cos(angle) * np.eye(3) + np.sin(angle) * across + (1.0 - np.cos(angle)) * np.outer(axis, axis)


def background(rng: np.random.Generator, height: int, width: int, split: str) -> np.ndarray:
    """[height, width, 3] between two colours: along a line in training scenes, from a centre outwards in the others."""
    first, second = (colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.1, 0.5), rng.uniform(0.3, 0.9)) for _ in "ab")
    ys, xs = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    if split == SPLITS[0]:
        angle = rng.uniform(0.0, 2.0 * np.pi)
        share = 0.5 + 0.5 * (np.cos(angle) * (xs - 0.5) + np.sin(angle) * (ys - 0.5))
    else:
        share = np.hypot(xs - rng.uniform(), ys - rng.uniform()) / np.sqrt(2.0)
    return share[..., None] * np.array(first) + (1.0 - share[..., None]) * np.array(second)


def place(rng: np.random.Generator, scene: Scene, name: str, pixels: np.ndarray) -> None:
    """Put a drawing at a random place, over what is there; if none of MAX_TRIES leaves enough of the drawings below
    visible, leave it out."""
    height, width = scene.colours.shape[:2]
    tall, wide = pixels.shape[:2]
    for _ in range(MAX_TRIES):
        top, left = int(rng.integers(0, height - tall + 1)), int(rng.integers(0, width - wide + 1))
        here = slice(top, top + tall), slice(left, left + wide)
        mask = np.zeros((height, width), dtype=bool)
        mask[here] = pixels[..., 3] >= COVERED
        rest = [covered & ~mask for covered in scene.covered]
        if any(left.sum() < MIN_VISIBLE * whole for left, whole in zip(rest, scene.whole, strict=True)):
            continue
        coverage = pixels[..., 3:]
        scene.colours[here] = (1.0 - coverage) * scene.colours[here] + coverage * pixels[..., :3]
        scene.covered = [*rest, mask]
        scene.whole.append(int(mask.sum()))
        scene.names.append(name)
        return


def compose(rng: np.random.Generator, font: Path, split: str) -> Scene:
    """One scene of at least MIN_LEFT drawings."""
    characters = drawings()
    names = list(characters)
    while True:
        height, width = (int(side) for side in rng.choice(SIDES, 2))
        scene = Scene(colours=background(rng, height, width, split))
        for _ in range(int(rng.integers(COUNTS[0], COUNTS[1] + 1))):
            name = names[int(rng.integers(len(names)))]
            place(rng, scene, name, drawing(rng, glyph(font, characters[name]), split))
        if len(scene.names) >= MIN_LEFT:
            return scene


def record_of(scene: Scene, image: str, name: str) -> dict[str, object]:
    """The JSONL record of a scene: objects in (y1, x1) order, boxes in bins."""
    height, width = scene.colours.shape[:2]
    boxes = [to_bins(tight_box(covered), width, height) for covered in scene.covered]
    objects = [{"desc": desc, "bbox_2d": box} for desc, box in zip(scene.names, boxes, strict=True)]
    objects.sort(key=lambda item: (item["bbox_2d"][1], item["bbox_2d"][0]))
    return {"id": name, "images": [image], "width": width, "height": height, "objects": objects}


def write_scene(index: int, *, folder: Path, split: str, seed: int, font: Path) -> str:
    """Write one picture into `folder`; returns its line of the JSONL."""
    scene = compose(scene_rng(seed, split, index), font, split)
    name = f"{split}-{index:06d}"
    pixels = np.round(np.clip(scene.colours, 0.0, 1.0) * 255.0).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "images" / f"{name}.png", compress_level=1)
    return json.dumps(record_of(scene, f"images/{name}.png", name)) + "\n"


def generate(
    out: Path,
    *,
    font: Path,
    seed: int,
    train_scenes: int,
    validation_scenes: int,
    advance: Callable[[], None] = lambda: None,
) -> bool:
    """Make the data set in `out`, whole or not at all. False: exactly this data set was there already.

    Args:
        advance: called after each scene that is written.
    """
    check_drawings(font)
    counts = dict(zip(SPLITS, (train_scenes, validation_scenes), strict=True))
    digest = hashlib.sha256(font.read_bytes()).hexdigest()
    manifest = {"generator_version": GENERATOR_VERSION, "seed": seed, "font": digest, **counts}
    writers = {split: partial(write_scene, split=split, seed=seed, font=font) for split in SPLITS}
    return write_data_set(out, MANIFEST, manifest, counts, writers, advance)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    command = "python -m ds_stage2ab.tools.emoji_scenes"
    parser = argparse.ArgumentParser(prog=command, description=__doc__.splitlines()[0])
    parser.add_argument("--font", type=Path, default=FONT, metavar="FILE", help=f"Noto Color Emoji (default: {FONT})")
    options = scene_options(parser, arguments)
    return make_scenes(options, partial(generate, font=options.font))


if __name__ == "__main__":
    sys.exit(main())

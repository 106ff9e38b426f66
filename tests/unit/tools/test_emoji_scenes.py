"""The emoji scenes: where boxes lie, what the splits do not share, and that a seed gives the same bytes.

The font is built here, a coloured polygon for each character: the real one is no package that the tests install.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fontTools.colorLib.builder import buildCOLR, buildCPAL
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from ds_stage2ab.errors import EnvironmentFault, exit_code
from ds_stage2ab.tools import emoji_scenes as emoji
from ds_stage2ab.tools.scene_files import tight_box, to_bins

EM = 1000


def polygon(corners: int):
    """A glyph of 800 units with so many corners."""
    pen = TTGlyphPen(None)
    angles = 2 * np.pi * np.arange(corners) / corners
    points = [(round(500 + 400 * np.cos(a)), round(400 + 400 * np.sin(a))) for a in angles]
    pen.moveTo(points[0])
    for point in points[1:]:
        pen.lineTo(point)
    pen.closePath()
    return pen.glyph()


def built_font(path: Path, *, coloured: bool = True, drawn: int = 1000) -> Path:
    """A font with a polygon for the first `drawn` names; COLR version 0, which FreeType draws in colour."""
    characters = list(emoji.drawings().values())[:drawn]
    names = [f"food{place}" for place in range(len(characters))]
    builder = FontBuilder(EM, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names])
    builder.setupCharacterMap({ord(one): name for one, name in zip(characters, names, strict=True)})
    shapes = {name: polygon(3 + place % 5) for place, name in enumerate(names)}
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), **shapes})
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *names], (EM, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Polygons", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    if coloured:
        palette = [(place / len(names), 1 - place / len(names), 0.3, 1.0) for place in range(len(names))]
        builder.font["COLR"] = buildCOLR({name: [(name, place)] for place, name in enumerate(names)}, version=0)
        builder.font["CPAL"] = buildCPAL([palette])
    builder.save(path)
    return path


@pytest.fixture(scope="module")
def font(tmp_path_factory) -> Path:
    return built_font(tmp_path_factory.mktemp("font") / "polygons.ttf")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_scene_is_a_function_of_seed_split_index_and_font_alone(tmp_path, font):
    make = partial(emoji.generate, font=font, train_scenes=6, validation_scenes=3)
    assert make(tmp_path / "a", seed=1) and make(tmp_path / "b", seed=1) and make(tmp_path / "c", seed=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a")["train.jsonl"] != contents(tmp_path / "c")["train.jsonl"]
    assert not make(tmp_path / "a", seed=1)
    assert emoji.generate(tmp_path / "d", font=font, seed=1, train_scenes=4, validation_scenes=1)
    first = contents(tmp_path / "a")["train.jsonl"].splitlines()[:4]
    assert contents(tmp_path / "d")["train.jsonl"].splitlines() == first


def test_no_height_angle_or_colour_shift_is_in_both_splits():
    for choices in (emoji.HEIGHTS, emoji.ANGLES, emoji.HUES, emoji.LIGHTS):
        assert not set(choices["train"]) & set(choices["validation"])


def test_backgrounds_are_of_two_kinds():
    # Along a line every second difference is the same everywhere; from a centre outwards it is not.
    for index in range(5):
        bent = {}
        for split in emoji.SPLITS:
            grey = emoji.background(emoji.scene_rng(0, split, index), 160, 192, split).sum(axis=2)
            bent[split] = np.abs(np.diff(grey, n=2, axis=0)).max()
        assert bent["train"] < 1e-12 < 1e-6 < bent["validation"]


def test_a_box_touches_the_ends_of_a_lone_drawing(font):
    character = emoji.drawings()["taco"]
    for index, split in enumerate(emoji.SPLITS * 5):
        rng = emoji.scene_rng(0, split, index)
        scene = emoji.Scene(colours=np.zeros((160, 176, 3)))
        emoji.place(rng, scene, "taco", emoji.drawing(rng, emoji.glyph(font, character), split))
        # Coverage is 1 inside and falls within two pixels: what is drawn at all ends at most two pixels further out.
        drawn = tight_box(scene.colours.max(axis=2) > 0)
        (record,) = emoji.record_of(scene, "x.png", "x")["objects"]
        assert record["desc"] == "taco"
        assert record["bbox_2d"] == to_bins(tight_box(scene.covered[0]), 176, 160)
        assert np.abs(np.subtract(drawn, tight_box(scene.covered[0]))).max() <= 2
        assert max(drawn[2] - drawn[0], drawn[3] - drawn[1]) + 1 in emoji.HEIGHTS[split]


def test_later_drawings_cover_at_most_a_fifth_and_no_pixel_shows_two(font):
    for index in range(12):
        scene = emoji.compose(emoji.scene_rng(3, "train", index), font, "train")
        assert emoji.MIN_LEFT <= len(scene.names) <= emoji.COUNTS[1]
        assert sum(covered.astype(int) for covered in scene.covered).max() == 1
        for covered, whole in zip(scene.covered, scene.whole, strict=True):
            assert covered.sum() >= 0.8 * whole


def test_each_drawing_has_a_name_of_its_own_of_one_to_three_words():
    found = emoji.drawings()
    assert len(found) == len(set(found.values())) >= 60
    assert {len(name.split()) for name in found} == {1, 2, 3}
    assert found["ear of maize"] == "\N{EAR OF MAIZE}"


def test_records_follow_the_data_contract(tmp_path, font):
    emoji.generate(tmp_path / "d", font=font, seed=0, train_scenes=8, validation_scenes=2)
    for line in (tmp_path / "d" / "train.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        assert record["width"] % 16 == 0 and record["height"] % 16 == 0
        corners = [(item["bbox_2d"][1], item["bbox_2d"][0]) for item in record["objects"]]
        assert corners == sorted(corners)
        for item in record["objects"]:
            x1, y1, x2, y2 = item["bbox_2d"]
            assert 0 <= x1 < x2 <= 999 and 0 <= y1 < y2 <= 999


def test_without_the_font_one_message_says_what_to_install(tmp_path, capsys):
    words = ["--out", str(tmp_path / "d"), "--font", str(tmp_path / "none.ttf")]
    assert emoji.main(words) == exit_code(EnvironmentFault(""))
    message = capsys.readouterr().err
    assert "there is no Noto Color Emoji font" in message and "fonts-noto-color-emoji" in message
    assert not (tmp_path / "d").exists()


def test_a_font_without_colours_or_a_drawing_is_refused(tmp_path):
    plain = built_font(tmp_path / "plain.ttf", coloured=False)
    with pytest.raises(EnvironmentFault, match="no coloured drawings"):
        emoji.generate(tmp_path / "d", font=plain, seed=0, train_scenes=1, validation_scenes=1)
    few = built_font(tmp_path / "few.ttf", drawn=2)
    with pytest.raises(EnvironmentFault, match="no drawing of burrito"):
        emoji.generate(tmp_path / "d", font=few, seed=0, train_scenes=1, validation_scenes=1)
    (tmp_path / "text.ttf").write_text("no font")
    with pytest.raises(EnvironmentFault, match="no font with drawings of 109 pixels"):
        emoji.generate(tmp_path / "d", font=tmp_path / "text.ttf", seed=0, train_scenes=1, validation_scenes=1)

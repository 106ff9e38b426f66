"""The digit scenes: who may be in which split, where boxes lie, and that nothing is half-written."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ds_stage2ab.errors import DataError, exit_code
from ds_stage2ab.tools import digit_scenes as digits
from ds_stage2ab.tools import scene_files

FULL = digits.Layout(max_digits=5, min_height=34, max_side=112)
SINGLE = digits.Layout(max_digits=1, min_height=34, max_side=112)


def generate(out: Path, *, seed: int = 3, train_scenes: int = 30, validation_scenes: int = 10) -> bool:
    return digits.generate(out, seed=seed, train_scenes=train_scenes, validation_scenes=validation_scenes, layout=FULL)


def records(folder: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_splits_share_no_scan_and_use_all():
    splits = digits.split_scans()
    train, validation = ({scan.index for scan in splits[name]} for name in digits.SPLITS)
    assert not train & validation
    assert train | validation == set(range(1797))
    # 20 % of each digit's 174 to 183 scans
    for label in range(10):
        assert sum(scan.label == label for scan in splits["validation"]) in (35, 36, 37)


def test_scans_of_one_split_never_show_the_same_pixels_as_the_other():
    splits = digits.split_scans()
    train, validation = ({scan.pixels.tobytes() for scan in splits[name]} for name in digits.SPLITS)
    assert not train & validation


def test_scenes_use_the_scans_of_their_split_alone():
    scans = digits.split_scans()["validation"][:7]
    shown = set()
    for index in range(30):
        shown |= {scan.index for scan in digits.compose(digits.scene_rng(0, "validation", index), scans, FULL).scans}
    assert shown == {scan.index for scan in scans}


def test_boxes_are_tight_around_the_pixels_of_a_lone_digit():
    scans = digits.split_scans()["train"]
    seen = 0
    for index in range(60):
        scene = digits.compose(digits.scene_rng(1, "train", index), scans, SINGLE, clutter=False)
        if not scene.scans:
            continue
        brightness = scene.brightness
        paper = np.median(brightness)  # a digit covers less than half of its picture
        contrast = np.abs(brightness - paper)
        box = digits.tight_box(contrast >= 0.5 * contrast.max() - 1e-9)
        height, width = brightness.shape
        bins = digits.record_of(scene, "x.png", "x")["objects"][0]["bbox_2d"]
        assert bins == digits.to_bins(box, width, height)
        seen += 1
    assert seen > 50


def test_later_digits_shrink_the_visible_ink_but_leave_most_of_it():
    scans = digits.split_scans()["train"]
    for index in range(60):
        scene = digits.compose(digits.scene_rng(2, "train", index), scans, FULL)
        for first in range(len(scene.ink)):
            for second in range(first):
                assert not (scene.ink[first] & scene.ink[second]).any()


def test_bins_round_half_up_and_reach_both_ends():
    # width 112: span 111. 999 * 37 / 111 = 333 exactly; 999 * 111 / 111 = 999. height 81: span 80,
    # 999 * 40 / 80 = 499.5 -> 500; 0 -> 0
    assert digits.to_bins((37, 0, 111, 40), 112, 81) == [333, 0, 999, 500]


def test_records_follow_the_data_contract(tmp_path):
    generate(tmp_path / "d")
    ids = set()
    for split, number in (("train", 30), ("validation", 10)):
        found = records(tmp_path / "d", split)
        assert len(found) == number
        for record in found:
            ids.add(record["id"])
            assert set(record) == {"id", "images", "width", "height", "objects"}
            with Image.open(tmp_path / "d" / record["images"][0]) as image:
                assert image.size == (record["width"], record["height"])
            assert record["width"] % 16 == 0 and record["height"] % 16 == 0
            corners = [(item["bbox_2d"][1], item["bbox_2d"][0]) for item in record["objects"]]
            assert corners == sorted(corners)
            for item in record["objects"]:
                x1, y1, x2, y2 = item["bbox_2d"]
                assert 0 <= x1 < x2 <= 999 and 0 <= y1 < y2 <= 999
                assert item["desc"] in digits.NAMES
    assert len(ids) == 40


def test_scenes_vary_in_size_and_in_number_of_digits_and_some_are_empty():
    scans = digits.split_scans()["train"]
    scenes = [digits.compose(digits.scene_rng(0, "train", index), scans, FULL) for index in range(400)]
    assert {scene.brightness.shape for scene in scenes} == {(h, w) for h in digits.SIDES for w in digits.SIDES}
    counts = np.bincount([len(scene.scans) for scene in scenes], minlength=6)
    assert (counts > 0).all()
    # 3 % of 400 = 12, standard deviation sqrt(400 * 0.03 * 0.97) = 3.4
    assert 2 <= counts[0] <= 26


def test_one_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    generate(tmp_path / "a")
    generate(tmp_path / "b")
    generate(tmp_path / "c", seed=4)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert (tmp_path / "a" / "train.jsonl").read_bytes() != (tmp_path / "c" / "train.jsonl").read_bytes()


def test_processes_that_share_the_work_write_the_same_bytes(tmp_path, monkeypatch):
    generate(tmp_path / "one")
    monkeypatch.setattr(scene_files, "LEAST_TO_SHARE", 10)
    monkeypatch.setattr(scene_files, "PER_TASK", 4)
    monkeypatch.setattr(scene_files.os, "sched_getaffinity", lambda process: {0, 1, 2})
    generate(tmp_path / "three")
    assert contents(tmp_path / "three") == contents(tmp_path / "one")


def test_more_scenes_keep_the_first_ones(tmp_path):
    generate(tmp_path / "a")
    generate(tmp_path / "b", train_scenes=40)
    assert records(tmp_path / "a", "train") == records(tmp_path / "b", "train")[:30]


def test_the_same_data_set_is_left_as_it_is(tmp_path):
    assert generate(tmp_path / "a")
    before = contents(tmp_path / "a")
    assert not generate(tmp_path / "a")
    assert contents(tmp_path / "a") == before


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    generate(tmp_path / "a")
    with pytest.raises(DataError, match="other settings"):
        generate(tmp_path / "a", seed=9)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"holds files but no digits\.json"):
        generate(tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "mine"]  # nothing half-written


def test_command_line_says_what_is_wrong_and_exits_with_the_data_code(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert digits.main(["--out", str(tmp_path / "file")]) == exit_code(DataError(""))
    assert "is a file, not a folder" in capsys.readouterr().err


def test_layout_of_one_large_digit_in_a_small_picture():
    scans = digits.split_scans()["train"]
    large = digits.Layout(max_digits=1, min_height=56, max_side=80)
    scenes = [digits.compose(digits.scene_rng(0, "train", index), scans, large) for index in range(40)]
    assert {scene.brightness.shape for scene in scenes} == {(80, 80)}
    boxes = [digits.tight_box(ink) for scene in scenes for ink in scene.ink]
    assert 30 < len(boxes) <= 40
    # A fifth of the height is margin, and a stroke may end short of it.
    assert min(y2 - y1 + 1 for _, y1, _, y2 in boxes) > 0.6 * 56


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def said(stream: io.StringIO, total: int) -> str:
    progress = scene_files.ScenesProgress(stream, total)
    for _ in range(total):
        progress.advance()
    return stream.getvalue()


def test_progress_is_four_lines_in_a_file():
    # 10 scenes in parts of ceil(10 / 4) = 3
    done = (3, 6, 9, 10)
    assert said(io.StringIO(), 10) == "".join(f"composing scenes {count}/10\n" for count in done)


def test_progress_is_one_line_that_is_written_over_on_a_terminal():
    expected = "\rcomposing scenes 100/250\rcomposing scenes 200/250\rcomposing scenes 250/250\n"
    assert said(Terminal(), 250) == expected


def test_command_line_tells_its_progress_and_what_it_wrote(tmp_path, capsys):
    words = ["--out", str(tmp_path / "data"), "--train-scenes", "6", "--validation-scenes", "2"]
    assert digits.main(words) == 0
    *progress, last = capsys.readouterr().out.splitlines()
    assert progress == [f"composing scenes {count}/8" for count in (2, 4, 6, 8)]
    assert last == f"{tmp_path / 'data'}: 6 training and 2 validation scenes written"
    assert digits.main(words) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'data'}: 6 training and 2 validation scenes were there already\n"

"""`ds-stage2ab predict` and `Detector` on the shipped checkpoint: the answers of an evaluation, box by box."""

import contextlib
import io
import json
import os
import re
import signal
from contextlib import nullcontext

import pytest
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from ds_stage2ab import Detector
from ds_stage2ab.cli import main
from ds_stage2ab.codec.text import get_codec
from ds_stage2ab.data.images import load_image
from ds_stage2ab.data.records import read_records
from ds_stage2ab.engine.build import position_index
from ds_stage2ab.errors import EXIT_CONFIG, EXIT_DATA, EXIT_ENVIRONMENT, ConfigError, DataError
from ds_stage2ab.evaluation.evaluator import Evaluator
from ds_stage2ab.predict import detector
from ds_stage2ab.rollout.hf import HfBackend
from ds_stage2ab.runtime.shutdown import EXIT_INTERRUPTED
from tests.parts import config_values, write_config
from tests.unit.parts import greedy_sampling, load_bench

NUM_IMAGES = 12


def predict(*words) -> tuple[int, str]:
    """(exit code, what it said)"""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main(["predict", *map(str, words)])
    return code, said.getvalue()


def lines_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def images(shipped):
    records = read_records(shipped.data / "validation.jsonl", image_root=None, box_format="bins")
    return [record.image for record in records]


@pytest.fixture(scope="module")
def evaluated(shipped, world, tmp_path_factory) -> dict[str, dict]:
    """Image -> its line, as an evaluation writes it."""
    bench = load_bench(shipped, num_samples=0)
    folder, codec = tmp_path_factory.mktemp("evaluated"), get_codec("array")
    records = read_records(shipped.data / "validation.jsonl", image_root=None, box_format="bins")
    settings = {"decode_batch_size": 4, "start_id": "s", "seed": 0, "codec": codec}
    Evaluator(
        records,
        bench.encoder.encode,
        HfBackend(lambda: nullcontext(bench.model), bench.vocabulary, position_index(bench.model), **settings),
        greedy_sampling(max_new_tokens=256, with_probabilities=True),
        codec=codec,
        vocabulary=bench.vocabulary,
        world=world,
        pictures=folder,
        num_pictures=0,
        warn=print,
        answers=folder,
    ).run(1)
    return {line["image"]: line for line in map(json.loads, (folder / "step-000001.jsonl").read_text().splitlines())}


@pytest.fixture(scope="module")
def predicted(shipped, images, tmp_path_factory):
    """The folder of one command over all scenes, by the checkpoint's own prompts."""
    folder = tmp_path_factory.mktemp("predicted") / "out"
    code, said = predict(shipped.model, *images, "--out", folder, "--batch", 5)
    assert code == 0, said
    assert f"the predictions of {NUM_IMAGES} images" in said
    return folder


def assert_same(line: dict, expected: dict):
    """Boxes, names and text to the last token; scores but for rounding, which the rows of a pass change."""
    assert [(one["desc"], one["bbox_2d"]) for one in line["objects"]] == [
        (one["desc"], one["bbox_2d"]) for one in expected["objects"]
    ]
    assert [one["score"] for one in line["objects"]] == pytest.approx(
        [one["score"] for one in expected["objects"]], rel=1e-3
    )
    assert all(line[key] == expected[key] for key in ("text", "state", "finish", "dropped", "width", "height"))


def test_the_command_gives_the_answers_of_the_evaluation(predicted, evaluated):
    lines = lines_of(predicted)
    assert [line["image"] for line in lines] == list(evaluated)
    assert sum(len(line["objects"]) for line in lines) > NUM_IMAGES / 2
    for line in lines:
        assert_same(line, evaluated[line["image"]])


def test_three_lines_of_python_give_them_too(shipped, images, evaluated):
    detect = Detector(shipped.model, batch=3)
    for found, image in zip(detect.stream(images), images, strict=True):
        assert_same(found.line(), evaluated[str(image)])
    found = detect(images[0])
    assert found.is_complete and found.objects
    for one in found.objects:
        width, height = found.record.width, found.record.height
        expected = [k / 999 * side for k, side in zip(one.bins, (width, height) * 2, strict=True)]
        assert one.box == pytest.approx(expected)
    with Image.open(images[0]) as picture:
        assert detect(picture).objects == found.objects
    with pytest.raises(DataError, match="is gone"):
        detect("nowhere.png")


def test_each_image_has_a_picture(predicted):
    lines = lines_of(predicted)
    pictures = {line["picture"] for line in lines}
    assert len(pictures) == NUM_IMAGES == len([*(predicted / "pictures").iterdir()])
    assert all(Image.open(predicted / name).width > 500 for name in pictures)


def test_coco_opens_the_results(predicted):
    with contextlib.redirect_stdout(io.StringIO()):
        images = COCO(str(predicted / "results_annotations.json"))
        results = images.loadRes(str(predicted / "results.json"))
    lines = lines_of(predicted)
    assert {image["file_name"] for image in images.dataset["images"]} == {line["image"] for line in lines}
    assert len(results.anns) == sum(len(line["objects"]) for line in lines)
    assert main(["export", "coco", str(predicted / "predictions.jsonl"), "--out", str(predicted / "again.json")]) == 0
    assert json.loads((predicted / "again.json").read_text()) == json.loads((predicted / "results.json").read_text())


def test_the_threshold_holds_for_everything(shipped, images, evaluated, tmp_path):
    scores = sorted(one["score"] for line in evaluated.values() for one in line["objects"])
    middle = scores[len(scores) // 2] - 1e-6
    code, _ = predict(shipped.model, *images, "--out", tmp_path / "out", "--threshold", middle, "--no-pictures")
    kept = [one["score"] for line in lines_of(tmp_path / "out") for one in line["objects"]]
    assert code == 0 and kept and min(kept) >= middle
    assert len(kept) == sum(score >= middle for score in scores)
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())) == len(kept)
    assert not (tmp_path / "out" / "pictures").exists()


# -- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder_with_bad(images, tmp_path):
    """Three images, one of them cut short, one that is none, and what is no image's name."""
    folder = tmp_path / "in"
    (folder / "below").mkdir(parents=True)
    for image, name in zip(images, ("a.png", "b.png", "below/c.png"), strict=False):
        (folder / name).write_bytes(image.read_bytes())
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:200])
    (folder / "d.jpg").write_text("no image")
    (folder / "notes.txt").write_text("x")
    (folder / ".hidden.png").write_text("x")
    return folder


def test_a_bad_image_is_named_and_counted(shipped, folder_with_bad, tmp_path):
    out = tmp_path / "out"
    code, said = predict(shipped.model, folder_with_bad, "--out", out)
    assert code == EXIT_DATA
    assert "2 of 4 images could not be used" in said
    assert re.findall(r"skipped: image \S+/(\S+)", said) == ["b.png", "d.jpg"]
    assert [line["image"].rsplit("/in/")[1] for line in lines_of(out)] == ["a.png", "below/c.png"]
    code, said = predict(shipped.model, folder_with_bad, "--out", out, "--resume", "--skip-bad")
    assert (code, "2 of 4 images are finished" in said, "2 of 2 images could not be used" in said) == (0, True, True)
    assert len(lines_of(out)) == 2


@pytest.mark.soak
def test_one_bad_image_among_five_hundred(shipped, images, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(500):
        (folder / f"{number:03}.png").write_bytes(images[number % NUM_IMAGES].read_bytes())
    (folder / "321.png").write_bytes((folder / "321.png").read_bytes()[:-200])
    code, said = predict(shipped.model, folder, "--out", tmp_path / "out", "--no-pictures")
    assert code == EXIT_DATA
    assert re.findall(r"skipped: image \S+/(\S+)", said) == ["321.png"]
    assert "1 of 500 images could not be used" in said and len(lines_of(tmp_path / "out")) == 499


def test_a_second_command_is_refused_or_goes_on(shipped, predicted, images, tmp_path, capsys):
    words = ["predict", str(shipped.model), *map(str, images), "--out", str(predicted)]
    before = (predicted / "predictions.jsonl").read_bytes()
    assert main(words) == EXIT_CONFIG
    assert "--resume" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0
    assert main([*words, "--resume", "--threshold", "0.5"]) == EXIT_CONFIG
    assert "threshold was 0.0" in capsys.readouterr().err
    assert (predicted / "predictions.jsonl").read_bytes() == before


def test_ctrl_c_keeps_what_is_finished(shipped, images, evaluated, tmp_path, monkeypatch):
    """And a last line that a kill has cut is answered again."""
    out, loaded = tmp_path / "out", []

    def interrupted(record):
        loaded.append(record)
        if len(loaded) == NUM_IMAGES // 2:
            os.kill(os.getpid(), signal.SIGINT)
        return load_image(record)

    words = (shipped.model, *images * 1, "--out", out, "--batch", 1)
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # workers of pytest-xdist ignore it
    try:
        with monkeypatch.context() as patched:
            patched.setattr(detector, "load_image", interrupted)
            code, said = predict(*words)
    finally:
        signal.signal(signal.SIGINT, ignored)
    assert (code, "interrupted" in said) == (EXIT_INTERRUPTED, True)
    finished = lines_of(out)
    assert 2 <= len(finished) < NUM_IMAGES
    assert len(json.loads((out / "results_annotations.json").read_text())["images"]) == len(finished)
    with (out / "predictions.jsonl").open("a") as stream:
        stream.write('{"id": "cut')
    code, said = predict(*words, "--resume")
    assert (code, f"{len(finished)} of {NUM_IMAGES} images are finished" in said) == (0, True)
    assert [line["image"] for line in lines_of(out)] == list(evaluated)
    for line in lines_of(out):
        assert_same(line, evaluated[line["image"]])


def test_words_that_name_nothing(shipped, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for words, why in (
        ([shipped.model, "nowhere.jpg"], "there is no such file"),
        ([shipped.model, "no/*.jpg"], "there is no such file"),
        ([shipped.model, tmp_path / "empty"], "there is no image in it"),
    ):
        assert main(["predict", *map(str, words), "--out", str(tmp_path / "out")]) == EXIT_CONFIG
        assert why in capsys.readouterr().err
    assert main(["predict", str(tmp_path), str(shipped.data), "--out", str(tmp_path / "out")]) == EXIT_ENVIRONMENT
    assert "no checkpoint here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# -- how a checkpoint is asked ---------------------------------------------------------------------------------------


def test_a_checkpoint_without_the_file_needs_a_config(quickstart, shipped, images, tmp_path, capsys):
    words = ["predict", str(quickstart.model), str(images[0]), "--out", str(tmp_path / "out"), "--no-pictures"]
    assert main(words) == EXIT_CONFIG
    assert "has no detector.json" in capsys.readouterr().err
    config = write_config(tmp_path / "c.yaml", config_values(quickstart, tmp_path, "run"))
    assert main([*words, "--config", str(config)]) == 0
    (line,) = lines_of(tmp_path / "out")
    assert line["finish"] == "length"  # a model that has learned nothing does not stop, and the config says 80 tokens


def test_another_prompt_changes_the_answer(shipped, images):
    first, other = (Detector(shipped.model, prompt=prompt)(images[0]) for prompt in (None, "Nothing at all. " * 20))
    assert first.found != other.found


def test_names_are_written_where_the_prompt_has_a_place_for_them(shipped, images):
    first = Detector(shipped.model, prompt="Find {classes} now.", classes=["two", "One", "one "])(images[0])
    other = Detector(shipped.model, prompt="Find One, two now.")(images[0])
    assert first.found == other.found
    for prompt, classes in ((None, ["one"]), ("Find {classes}.", [])):
        with pytest.raises(ConfigError, match="place for names"):
            Detector(shipped.model, prompt=prompt, classes=classes)


# -- pictures --------------------------------------------------------------------------------------------------------


def test_a_picture_of_a_large_photograph_is_one_to_look_at(shipped, tmp_path):
    """Of any size that training takes."""
    photograph = Image.effect_noise((4000, 3000), 80).convert("RGB")
    ImageDraw.Draw(photograph).rectangle((100, 100, 2000, 2000), fill="white")
    photograph.save(tmp_path / "large.jpg")
    found = Detector(shipped.model)(tmp_path / "large.jpg")
    assert max(found.picture().size) <= 2200 and found.record.width == 4000

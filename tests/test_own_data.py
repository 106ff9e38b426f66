"""README's commands from COCO's annotations to a run and back, line by line as they stand, on 40 photographs."""

import contextlib
import io
import json
import re
import shlex

import pytest
from pycocotools.coco import COCO

from ds_stage2ab.cli import main
from ds_stage2ab.metrics.journal import read_history
from ds_stage2ab.validate import main as validate
from tests import ranks
from tests.architecture.sources import ROOT
from tests.photographs import NUM_IMAGES, coco_of_photographs

STEPS = 2
SHORT = (
    "--set", "model.precision=fp32", "--set", f"training.max_steps={STEPS}", "--set", "training.global_max_length=1024",
    "--set", "custom.extra.rollout_matching.max_new_tokens=64", "--set", "evaluation.at_start=false",
)  # fmt: skip
"""What the tiny model on a CPU needs, over the config that `init` wrote for 4B on a GPU."""


def commands() -> list[str]:
    """The block of README's section, without its remarks."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Your own data and checkpoint")[1]
    block = re.search(r"^```\n(ds-stage2ab import.*?)^```", section, re.DOTALL | re.MULTILINE).group(1)
    return [line.split(" #")[0].strip() for line in block.splitlines()]


@pytest.fixture(scope="module")
def walk(quickstart, tmp_path_factory):
    """Every line, run in its order: line -> what it said. The folder is `walk["folder"]`."""
    folder = tmp_path_factory.mktemp("own")
    paths = {
        "path/to/instances.json": coco_of_photographs(folder / "coco"),
        "path/to/images": folder / "coco" / "images",
        "path/to/Qwen3-VL-4B": quickstart.plain,
        "path/to/with-coordinates": folder / "model",
        "--out data": f"--out {folder}/data",
        "--data data": f"--data {folder}/data",
        "my.yaml": folder / "my.yaml",
        "data.html": folder / "data.html",
        "runs/my": folder / "runs" / "my",
        "results.json": folder / "results.json",
        "--out found": f"--out {folder}/found",
    }
    said = {}
    for command in commands():
        line = command
        for example, path in paths.items():
            line = line.replace(example, str(path))
        said[command] = _run(shlex.split(line), folder)
    return {"folder": folder, **said}


def _run(words, folder) -> str:
    if words[0] == "deepspeed":
        done = ranks.train(words[-1], *SHORT, "--set", f"logging.root={folder}/runs", ranks=1)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(words[1:]) if words[0] == "ds-stage2ab" else validate(words[3:])
    assert code == 0, out.getvalue()
    return out.getvalue()


def said_by(walk, beginning: str) -> str:
    (found,) = (text for command, text in walk.items() if command.startswith(beginning))
    return found


def test_the_images_are_imported_and_some_are_held_out(walk):
    report = json.loads((walk["folder"] / "data" / "import_report.json").read_text())["train.jsonl"]
    written = report["images"]["written"]
    assert sum(written.values()) == NUM_IMAGES and 1 <= written["validation.jsonl"] <= 10
    assert report["images"]["without_objects"] == NUM_IMAGES // 5
    assert report["objects"]["left_out"] == {"crowd": 1}
    assert set(report["classes"]) == {"flower", "portrait"}
    assert "crowd" in said_by(walk, "ds-stage2ab import")


def test_the_data_are_shown(walk):
    said = said_by(walk, "ds-stage2ab data")
    assert f"train.jsonl: {NUM_IMAGES - _held_out(walk)} images" in said and "answer, tokens" in said
    assert "warning" not in said
    # 18 spread over the set, and the six with the most objects, which may be among them
    assert 18 <= (walk["folder"] / "data.html").read_text().count("<img") - _held_out(walk) <= 24


def _held_out(walk) -> int:
    return len((walk["folder"] / "data" / "validation.jsonl").read_text().splitlines())


def test_the_plan_says_that_it_fits(walk):
    assert "fits a GPU of 80 GiB" in said_by(walk, "ds-stage2ab plan")
    assert "valid: 32 samples per step" in said_by(walk, "python -m ds_stage2ab.validate")


def test_the_run_trains_and_evaluates(walk):
    history = read_history(walk["folder"] / "runs" / "my" / "metrics.jsonl")
    assert [step.applied for step in history.steps] == [True] * STEPS
    assert [one.metrics["eval/samples"] for one in history.evaluations][-1] == _held_out(walk)


def test_the_way_back_opens_in_pycocotools(walk):
    """Truth comes back with the ids that it had, within half a bin."""
    with contextlib.redirect_stdout(io.StringIO()):
        before = COCO(str(walk["folder"] / "coco" / "instances.json"))
        after = COCO(str(walk["folder"] / "results_annotations.json"))
        after.loadRes(str(walk["folder"] / "results.json")) if _has_results(walk) else None
    assert len(after.getImgIds()) == _held_out(walk)
    for key in after.getImgIds():
        expected = sorted(one["bbox"] for one in before.loadAnns(before.getAnnIds(imgIds=[key], iscrowd=False)))
        found = sorted(one["bbox"] for one in after.loadAnns(after.getAnnIds(imgIds=[key])))
        assert len(found) == len(expected)
        for box, other in zip(expected, found, strict=True):
            # half a bin of 160 pixels for a start, and for a size the errors of both its ends
            assert other == pytest.approx(box, abs=2 * 0.5 * 160 / 999 + 1e-9)


def test_every_picture_is_answered(walk):
    lines = (walk["folder"] / "found" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == NUM_IMAGES == len([*(walk["folder"] / "found" / "pictures").iterdir()])


def _has_results(walk) -> bool:
    """A model of two steps may find nothing, and pycocotools opens no empty list."""
    return json.loads((walk["folder"] / "results.json").read_text()) != []

"""The way back: files that pycocotools opens, and boxes where they were."""

import contextlib
import io
import json

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ds_stage2ab.errors import ConfigError, DataError
from ds_stage2ab.formats.export_coco import export_coco
from tests.unit.formats.sets import HEIGHT, WIDTH, image, imported

CAT = {"desc": "cat", "bbox_2d": [0, 0, 333, 999]}
OWL = {"desc": "Owl ", "bbox_2d": [333, 333, 666, 666]}


def write(folder, *values, name="predictions.jsonl"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(value) for value in values))
    return path


def line(key, *objects, **more):
    return {"id": key, "image": f"{key}.png", "width": 300, "height": 150, "objects": list(objects), **more}


def opened(path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def average_precision(annotations, results) -> float:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        judge = COCOeval(truth, truth.loadRes(str(results)), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats[0]


def test_predictions_with_truth(tmp_path):
    file = write(
        tmp_path,
        line("a", {**CAT, "score": 0.5}, {"desc": "dog", "bbox_2d": [1, 1, 9, 9], "score": None}, truth=[CAT]),
        line("b", {"desc": "owl", "bbox_2d": [333, 333, 666, 666], "score": 0.25}, truth=[OWL, CAT]),
    )
    written = export_coco(file, tmp_path / "found.json", None)
    assert [path.name for path, _ in written] == ["found_annotations.json", "found.json"]
    results = json.loads((tmp_path / "found.json").read_text())
    # 333 / 999 of 300 and of 150 pixels; categories in the order of their names: cat, dog, owl
    assert results[0] == {"image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 150], "score": 0.5}
    assert (results[1]["category_id"], results[1]["score"]) == (2, 1.0)
    assert results[2]["bbox"] == pytest.approx([100, 50, 100, 50])
    truth = opened(tmp_path / "found_annotations.json")
    assert [one["name"] for one in truth.loadCats(truth.getCatIds())] == ["cat", "dog", "Owl"]
    # of cat one of two is found, which COCO's 101 recall points count as 51 / 101; the owl is found; no true dog
    found = average_precision(tmp_path / "found_annotations.json", tmp_path / "found.json")
    assert found == pytest.approx((51 / 101 + 1) / 2)


def test_predictions_without_truth(tmp_path):
    export_coco(write(tmp_path, line("a", {**CAT, "score": 0.5})), tmp_path / "found.json", None)
    truth = opened(tmp_path / "found_annotations.json")
    assert truth.getAnnIds() == []
    with contextlib.redirect_stdout(io.StringIO()):
        assert len(truth.loadRes(str(tmp_path / "found.json")).getAnnIds()) == 1


def test_the_newest_evaluation_of_a_run(tmp_path):
    write(tmp_path, line("a"), name="evaluations/step-000000.jsonl")
    write(tmp_path, line("a", {**CAT, "score": 0.5}), name="evaluations/step-000100.jsonl")
    export_coco(tmp_path, tmp_path / "found.json", None)
    assert len(json.loads((tmp_path / "found.json").read_text())) == 1


def test_a_round_trip_moves_no_side_by_more_than_half_a_bin(tmp_path):
    """COCO -> JSONL -> COCO, with the ids that there were, up to every border."""
    boxes = [
        [0, 0, WIDTH, HEIGHT],
        [0.4, 0.3, 10.2, 7.7],
        [WIDTH - 11.3, HEIGHT - 5.1, 11.3, 5.1],
        [100.123, 50.777, 33.3, 21],
    ]
    images = [{"id": 40, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}]
    image(tmp_path / "images" / "a.png")
    annotations = [
        {"id": place, "image_id": 40, "category_id": 18, "bbox": box, "iscrowd": 0, "area": 1}
        for place, box in enumerate(boxes, start=1)
    ]
    values = {"images": images, "annotations": annotations, "categories": [{"id": 18, "name": "dog"}]}
    (tmp_path / "set.json").write_text(json.dumps(values))
    imported("coco", tmp_path, "set.json")
    export_coco(tmp_path / "out" / "set.jsonl", tmp_path / "back.json", None)
    back = opened(tmp_path / "back.json")
    assert back.getImgIds() == [40]
    for before, after in zip(boxes, back.loadAnns(back.getAnnIds()), strict=True):
        for start, size, side in ((0, 2, WIDTH), (1, 3, HEIGHT)):
            half = 0.5 * side / 999 + 1e-9
            assert abs(after["bbox"][start] - before[start]) <= half
            assert abs(sum(after["bbox"][start::2]) - before[start] - before[size]) <= half


def test_the_ids_of_an_annotations_file(tmp_path):
    categories = [{"id": 18, "name": "Cat"}, {"id": 19}, 7]
    values = {"images": [{"id": 40}, {"id": 41}, "x"], "annotations": [], "categories": categories}
    (tmp_path / "truth.json").write_text(json.dumps(values))
    file = write(tmp_path, line("41", {**CAT, "score": 0.5}, {**OWL, "score": 0.5}))
    written = export_coco(file, tmp_path / "found.json", tmp_path / "truth.json")
    assert [what for _, what in written] == ["results; 1 boxes left out, whose names are no category there"]
    (result,) = json.loads((tmp_path / "found.json").read_text())
    assert (result["image_id"], result["category_id"]) == (41, 18)
    with pytest.raises(DataError, match="image 7 is not in the annotations"):
        export_coco(write(tmp_path, line("7")), tmp_path / "other.json", tmp_path / "truth.json")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"id": "a"}, "neither a line of predictions nor a record"),
        ([1], "neither a line of predictions nor a record"),
        (line("a", {"desc": "cat", "bbox_2d": [0, 0, 640, 1200]}), "bins 0..999"),
        (line("a", {**CAT, "score": "high"}), "has a score that is no number"),
        (line("a", truth=7), r"truth\[0\]: is no object with desc and bbox_2d"),
        (line("a", {"desc": "cat"}), r"objects\[0\]: is no object with desc and bbox_2d"),
    ],
)
def test_a_line_of_another_form_is_refused(tmp_path, value, message):
    with pytest.raises(DataError, match=message):
        export_coco(write(tmp_path, value), tmp_path / "found.json", None)


def test_what_else_is_refused(tmp_path):
    file = write(tmp_path, line("a", {**CAT, "score": 0.5}))
    (tmp_path / "found_annotations.json").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        export_coco(file, tmp_path / "found.json", None)
    assert not (tmp_path / "found.json").exists()
    with pytest.raises(ConfigError, match=r"has no evaluations/step-\*\.jsonl"):
        export_coco(tmp_path, tmp_path / "found.json", None)
    with pytest.raises(DataError, match="the file is empty"):
        export_coco(write(tmp_path, name="empty.jsonl"), tmp_path / "found.json", None)
    with pytest.raises(DataError, match="two lines have the same id"):
        export_coco(write(tmp_path, line("a"), line("a")), tmp_path / "other.json", None)


def test_an_image_that_is_called_otherwise_is_known_by_its_file(tmp_path):
    """As those of predictions are, whose id is their path; a name of two images tells neither."""
    names = {7: "000000007.jpg", 8: "a/b.jpg", 9: "c/b.jpg"}
    values = {
        "images": [{"id": key, "file_name": name} for key, name in names.items()],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [],
    }
    (tmp_path / "instances.json").write_text(json.dumps(values))

    def export(path):
        found = {"id": path, "image": path, "width": 300, "height": 150, "objects": [{**CAT, "score": 0.5}]}
        out = tmp_path / f"{len(path)}.json"
        export_coco(write(tmp_path, found), out, tmp_path / "instances.json")
        return json.loads(out.read_text())

    assert [one["image_id"] for one in export("photos/000000007.jpg")] == [7]
    with pytest.raises(DataError, match="not in the annotations"):
        export("photos/b.jpg")

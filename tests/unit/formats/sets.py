"""Small foreign data sets: images of 333 x 111 pixels, so that bins are 3 x and 9 y."""

import json
from pathlib import Path

from PIL import Image

from ds_stage2ab.data.records import check_image, read_records
from ds_stage2ab.formats.importing import Target, import_dataset
from ds_stage2ab.formats.report import REPORT
from ds_stage2ab.formats.source import ReadOptions

WIDTH, HEIGHT = 333, 111
EXIF_ORIENTATION = 0x0112


def image(path: Path, *, size=(WIDTH, HEIGHT), orientation=None, mode="L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation is not None:
        exif[EXIF_ORIENTATION] = orientation
    Image.new(mode, size).save(path, exif=exif)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def imported(kind: str, folder: Path, annotations: str, *, images="images", out="out", name="set", **changes):
    """(lines of the JSONL, its entry in the report); the package's reader has accepted every line and image."""
    read = {"split": None, "class_names": None, "keep_crowd": False}
    write = {"copy": False, "min_side": 0.0, "hold_out": 0.0}
    for key, value in changes.items():
        (read if key in read else write)[key] = value
    import_dataset(
        kind,
        ReadOptions(annotations=folder / annotations, images=folder / images, **read),
        Target(out=folder / out, name=name, **write),
        lambda things, total: things,
    )
    for file in (folder / out).glob("*.jsonl"):
        for record in read_records(file, image_root=None, box_format="bins"):
            check_image(record)
    report = json.loads((folder / out / REPORT).read_text(encoding="utf-8"))
    return lines(folder / out / f"{name}.jsonl"), report[f"{name}.jsonl"]


def record(path: str, *objects: tuple, size=(WIDTH, HEIGHT), **more) -> dict:
    """A line as it is expected: objects are (desc, x1, y1, x2, y2)."""
    found = [{"desc": desc, "bbox_2d": list(box)} for desc, *box in objects]
    return {"images": [f"images/set/{path}"], "width": size[0], "height": size[1], "objects": found, **more}


def expected(written: int, objects: int, *, images=None, left=None, changed=None, classes, empty=0) -> dict:
    """The counts of a report as they are expected."""
    images, left = images or {}, left or {}
    return {
        "images": {
            "read": written + sum(images.values()),
            "written": {"set.jsonl": written},
            "without_objects": empty,
            "left_out": images,
        },
        "objects": {"read": objects + sum(left.values()), "written": objects, "left_out": left},
        "changed": changed or {},
        "classes": classes,
    }


def counts(report: dict) -> dict:
    return {key: report[key] for key in ("images", "objects", "changed", "classes")}

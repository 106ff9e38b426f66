"""Writes a COCO file of any size, and imports it in this process, which then says what that took.

python -m tests.bench.large_coco FOLDER write|import|pycocotools
"""

import json
import os
import random
import sys
import time
from pathlib import Path

from PIL import Image

NUM_ANNOTATIONS, NUM_IMAGES, NUM_CLASSES = 200_000, 27_000, 80  # COCO's own share of objects per image, 7.3
WIDTH, HEIGHT = 640, 480
POINTS = 25  # of a polygon: COCO's annotations are about 500 bytes each
KIB = 1024


def write(folder: Path) -> None:
    """`set.json`, and `images/`, all of which are one file under many names."""
    draw = random.Random(0)
    (folder / "images").mkdir()
    first = folder / "images" / "0.jpg"
    Image.new("RGB", (WIDTH, HEIGHT)).save(first)
    for place in range(1, NUM_IMAGES):
        os.link(first, folder / "images" / f"{place}.jpg")
    images = [
        {"id": place, "file_name": f"{place}.jpg", "width": WIDTH, "height": HEIGHT} for place in range(NUM_IMAGES)
    ]
    values = {
        "images": images,
        "annotations": [_annotation(draw, number) for number in range(1, NUM_ANNOTATIONS + 1)],
        "categories": [{"id": place, "name": f"class {place}"} for place in range(NUM_CLASSES)],
    }
    (folder / "set.json").write_text(json.dumps(values))


def _annotation(draw: random.Random, number: int) -> dict:
    x, y = draw.uniform(0, WIDTH - 60), draw.uniform(0, HEIGHT - 60)
    width, height = draw.uniform(5, 59), draw.uniform(5, 59)
    polygon = [round(draw.uniform(0, 500), 2) for _ in range(2 * POINTS)]
    return {
        "segmentation": [polygon],
        "area": width * height,
        "iscrowd": 0,
        "image_id": draw.randrange(NUM_IMAGES),
        "bbox": [round(value, 2) for value in (x, y, width, height)],
        "category_id": draw.randrange(NUM_CLASSES),
        "id": number,
    }


def take(folder: Path, how: str) -> dict[str, float]:
    """Wall and CPU seconds, and the peak of this process's memory in MiB beyond what it had after all imports."""
    from pycocotools.coco import COCO

    from ds_stage2ab.formats.importing import Target, import_dataset
    from ds_stage2ab.formats.source import ReadOptions

    before, start, cpu_start = _peak_mib(), time.perf_counter(), time.process_time()
    if how == "pycocotools":
        found = len(COCO(str(folder / "set.json")).anns)
    else:
        read = ReadOptions(
            annotations=folder / "set.json",
            images=folder / "images",
            split=None,
            class_names=None,
            keep_crowd=False,
        )
        target = Target(out=folder / "out", name="set", copy=False, min_side=0.0, hold_out=0.0)
        report = import_dataset("coco", read, target, lambda things, total: things)
        found = report.objects + report.tally.objects.total()
    assert found == NUM_ANNOTATIONS
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "mib": _peak_mib() - before}


def _peak_mib() -> float:
    """Of this process alone: `ru_maxrss` would count what the parent had when it forked."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / KIB


if __name__ == "__main__":
    folder, how = Path(sys.argv[1]), sys.argv[2]
    if how == "write":
        write(folder)
    else:
        print(json.dumps(take(folder, how)))

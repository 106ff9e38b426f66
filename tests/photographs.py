"""A COCO set of 40 pictures, made of photographs that scikit-learn and matplotlib carry: crops, and objects in them."""

import json
import random
from pathlib import Path

import matplotlib as mpl
import sklearn
from PIL import Image

NUM_IMAGES = 40
SIZE = (160, 120)
CATEGORIES = {1: "flower", 2: "portrait"}
FIRST_ID = 101


def _photographs() -> tuple[Image.Image, dict[int, Image.Image]]:
    """The background, and the picture of each category."""
    folder = Path(sklearn.__file__).parent / "datasets" / "images"
    portrait = Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    found = [Image.open(path).convert("RGB") for path in (folder / "china.jpg", folder / "flower.jpg", portrait)]
    return found[0], dict(zip(CATEGORIES, found[1:], strict=True))


def coco_of_photographs(folder: Path) -> Path:
    """Write `images/` and `instances.json`; every fifth picture is empty, and one annotation is a crowd."""
    draw = random.Random(0)
    background, objects = _photographs()
    images, annotations = [], []
    (folder / "images").mkdir(parents=True)
    for key in range(FIRST_ID, FIRST_ID + NUM_IMAGES):
        left, top = (draw.randrange(side - size) for side, size in zip(background.size, SIZE, strict=True))
        picture = background.crop((left, top, left + SIZE[0], top + SIZE[1]))
        for category in () if key % 5 == 0 else draw.sample(list(CATEGORIES), draw.randint(1, 2)):
            side = draw.randint(24, 56)
            # the two never overlap: each has its half of the picture
            x, y = draw.randrange(78 - side) + 80 * (category - 1), draw.randrange(SIZE[1] - side)
            picture.paste(objects[category].resize((side, side)), (x, y))
            annotations.append({"image_id": key, "category_id": category, "bbox": [x, y, side, side], "iscrowd": 0})
        picture.save(folder / "images" / f"{key}.jpg", quality=90)
        images.append({"id": key, "file_name": f"{key}.jpg", "width": SIZE[0], "height": SIZE[1]})
    annotations.append({"image_id": FIRST_ID, "category_id": 1, "bbox": [0, 0, 160, 120], "iscrowd": 1})
    values = {
        "images": images,
        "annotations": [{"id": number, **one} for number, one in enumerate(annotations, start=1)],
        "categories": [{"id": key, "name": name} for key, name in CATEGORIES.items()],
    }
    (folder / "instances.json").write_text(json.dumps(values))
    return folder / "instances.json"

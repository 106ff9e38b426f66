"""COCO's average precision of detections, computed by pycocotools (Lin et al. 2014, "Microsoft COCO"), and LVIS's.

Categories are the descriptions (`codec.names.compared`) of true objects: predictions of other names are ignored, as in
COCO. At most the 100 detections with the highest scores count per image and description; for LVIS 300 per image.

LVIS (Gupta et al. 2019, section 4) is not annotated exhaustively: a prediction counts only where it is known whether
its description is there, and where not every object of a description is annotated, a further one is neither right nor
wrong. Such an area is to COCO a crowd, here of the whole image.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ds_stage2ab.carriers import Box, Truth
from ds_stage2ab.codec.bins import MAX_BIN, fraction_of
from ds_stage2ab.codec.names import compared
from ds_stage2ab.evaluation.f1 import name_of

ANY_AREA, MOST_DETECTIONS = 0, 2
"""Indices into COCOeval's tables: areas of all sizes, and the most detections per image."""
AT_50, AT_75 = 0, 5
"""Indices of its IoU thresholds."""
COCO_DETECTIONS, LVIS_DETECTIONS = 100, 300
WHOLE_IMAGE = (0, 0, MAX_BIN, MAX_BIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Detections:
    """True and predicted objects of one image."""

    width: int
    height: int
    # pixels
    truth: Sequence[Truth]
    predicted: Sequence[Truth]
    scores: Sequence[float]
    # one for each predicted object, higher is more certain
    absent: Sequence[str] | None = None
    not_exhaustive: Sequence[str] = ()
    # as in `carriers.Record`


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragePrecision:
    """In 0..1; without any true object all are None."""

    ap: float | None
    # mean over IoU thresholds 0.50, 0.55, ..., 0.95 and descriptions
    ap50: float | None
    # at IoU 0.50
    ap75: float | None
    # at IoU 0.75
    by_description: dict[str, float]
    # `ap` of each description of true objects


def average_precision(images: Sequence[Detections]) -> AveragePrecision:
    """COCO's AP of a set."""
    return _average(images, [()] * len(images), COCO_DETECTIONS)


def lvis_average_precision(images: Sequence[Detections]) -> AveragePrecision:
    """LVIS's AP of a set."""
    partly = [{compared(name) for name in image.not_exhaustive} for image in images]
    return _average([_known(image) for image in images], partly, LVIS_DETECTIONS)


def _known(image: Detections) -> Detections:
    """Without predictions of which it is not known whether they are there, and of the rest the surest."""
    known = {name_of(one) for one in image.truth} | {compared(name) for name in image.absent or ()}
    kept = [place for place, one in enumerate(image.predicted) if image.absent is None or name_of(one) in known]
    kept = sorted(sorted(kept, key=lambda place: -image.scores[place])[:LVIS_DETECTIONS])
    return replace(
        image, predicted=[image.predicted[place] for place in kept], scores=[image.scores[place] for place in kept]
    )


def _average(images: Sequence[Detections], crowds: Sequence[Iterable[str]], most_detections: int) -> AveragePrecision:
    """AP of a set.

    Args:
        crowds: of each image, names of which further objects may be anywhere in it.
    """
    names = sorted({name_of(one) for image in images for one in image.truth})
    if not names:
        return AveragePrecision(ap=None, ap50=None, ap75=None, by_description={})
    categories = {name: place for place, name in enumerate(names, start=1)}
    truth = [
        {**_entry(one, image, place), "category_id": categories[name_of(one)], "iscrowd": 0}
        for place, image in enumerate(images)
        for one in image.truth
    ]
    truth += [
        {**_entry(Truth(desc=name, box=WHOLE_IMAGE), image, place), "category_id": categories[name], "iscrowd": 1}
        for place, (image, partly) in enumerate(zip(images, crowds, strict=True))
        for name in sorted(categories.keys() & partly)
    ]
    found = [
        {**_entry(one, image, place), "category_id": categories[name_of(one)], "score": float(score)}
        for place, image in enumerate(images)
        for one, score in zip(image.predicted, image.scores, strict=True)
        if name_of(one) in categories
    ]
    if not found:
        return AveragePrecision(ap=0.0, ap50=0.0, ap75=0.0, by_description=dict.fromkeys(names, 0.0))
    return _evaluated(len(images), categories, truth, found, most_detections)


def _entry(one: Truth, image: Detections, place: int) -> dict:
    x, y, width, height = _in_pixels(one.box, image)
    return {"image_id": place, "bbox": [x, y, width, height], "area": width * height}


def _in_pixels(box: Box, image: Detections) -> tuple[float, float, float, float]:
    """x, y, width and height of a box as a continuous area of the image."""
    x1, y1, x2, y2 = map(fraction_of, box)
    return x1 * image.width, y1 * image.height, (x2 - x1) * image.width, (y2 - y1) * image.height


def _evaluated(
    num_images: int, categories: dict[str, int], truth: list[dict], found: list[dict], most_detections: int
) -> AveragePrecision:
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        dataset = COCO()
        dataset.dataset = {
            "info": {},
            "images": [{"id": place} for place in range(num_images)],
            "categories": [{"id": place, "name": name} for name, place in categories.items()],
            "annotations": [{**entry, "id": number} for number, entry in enumerate(truth, start=1)],
        }
        dataset.createIndex()
        evaluation = COCOeval(dataset, dataset.loadRes(found), "bbox")
        evaluation.params.maxDets[MOST_DETECTIONS] = most_detections
        evaluation.evaluate()
        evaluation.accumulate()
    # [thresholds, recalls, categories, areas, most detections]; each category has true objects
    precision_TRK = evaluation.eval["precision"][:, :, :, ANY_AREA, MOST_DETECTIONS]
    means_K = np.moveaxis(precision_TRK, 2, 0).reshape(len(categories), -1).mean(axis=1)
    return AveragePrecision(
        ap=float(precision_TRK.mean()),
        ap50=float(precision_TRK[AT_50].mean()),
        ap75=float(precision_TRK[AT_75].mean()),
        by_description=dict(zip(categories, means_K.tolist(), strict=True)),
    )

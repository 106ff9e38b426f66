"""COCO's average precision of detections, computed by pycocotools (Lin et al. 2014, "Microsoft COCO").

Categories are the descriptions (`codec.names.compared`) of true objects: predictions of other names are ignored, as in
COCO. At most the 100 detections with the highest scores count per image.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ds_stage2ab.carriers import Box, Truth
from ds_stage2ab.codec.bins import fraction_of
from ds_stage2ab.evaluation.f1 import name_of

ANY_AREA, MOST_DETECTIONS = 0, 2
"""Indices into COCOeval's tables: areas of all sizes, and 100 detections per image."""


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
    names = sorted({name_of(one) for image in images for one in image.truth})
    if not names:
        return AveragePrecision(ap=None, ap50=None, ap75=None, by_description={})
    categories = {name: place for place, name in enumerate(names, start=1)}
    truth = [
        {**_entry(one, image, place), "category_id": categories[name_of(one)], "iscrowd": 0}
        for place, image in enumerate(images)
        for one in image.truth
    ]
    found = [
        {**_entry(one, image, place), "category_id": categories[name_of(one)], "score": float(score)}
        for place, image in enumerate(images)
        for one, score in zip(image.predicted, image.scores, strict=True)
        if name_of(one) in categories
    ]
    if not found:
        return AveragePrecision(ap=0.0, ap50=0.0, ap75=0.0, by_description=dict.fromkeys(names, 0.0))
    return _evaluated(len(images), categories, truth, found)


def _entry(one: Truth, image: Detections, place: int) -> dict:
    x, y, width, height = _in_pixels(one.box, image)
    return {"image_id": place, "bbox": [x, y, width, height], "area": width * height}


def _in_pixels(box: Box, image: Detections) -> tuple[float, float, float, float]:
    """x, y, width and height of a box as a continuous area of the image."""
    x1, y1, x2, y2 = map(fraction_of, box)
    return x1 * image.width, y1 * image.height, (x2 - x1) * image.width, (y2 - y1) * image.height


def _evaluated(num_images: int, categories: dict[str, int], truth: list[dict], found: list[dict]) -> AveragePrecision:
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
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # [thresholds, recalls, categories, areas, most detections]; -1 where there is no truth
    precision_TRK = evaluation.eval["precision"][:, :, :, ANY_AREA, MOST_DETECTIONS]
    means_K = np.moveaxis(precision_TRK, 2, 0).reshape(len(categories), -1).mean(axis=1)
    ap, ap50, ap75 = evaluation.stats[:3].tolist()
    return AveragePrecision(
        ap=ap, ap50=ap50, ap75=ap75, by_description=dict(zip(categories, means_K.tolist(), strict=True))
    )

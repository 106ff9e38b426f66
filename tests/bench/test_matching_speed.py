"""Reading, matching and completing rollouts: beside the plain Python, beside rasterised boxes, beside `generate`."""

import random
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest

from ds_stage2ab import ops
from ds_stage2ab.carriers import Truth
from ds_stage2ab.codec.text import CODECS, encode_answer
from ds_stage2ab.engine.build import position_index
from ds_stage2ab.matching import assign
from ds_stage2ab.matching.append import appended_target
from ds_stage2ab.matching.assign import match_boxes
from ds_stage2ab.matching.parse import parse_rollout
from ds_stage2ab.matching.scan import scan_arguments
from ds_stage2ab.ops import reference
from ds_stage2ab.rollout.hf import HfBackend
from tests.unit.parts import greedy_sampling, load_bench

ROLLOUTS, OBJECTS = 64, 60
TURNS = 5
RASTER = 256
COSTS = {"candidate_top_k": 10, "iou_gate": 0.3, "fp_cost": 1.0, "fn_cost": 1.0}
WEIGHTS = {"desc_ce_weight": 1.0, "drop_invalid_struct_ce_multiplier": 1.0, "where": "bench"}


def medians(*jobs: Callable[[], object]) -> list[float]:
    """Median wall seconds of each job, all of them taking turns."""
    turns = [[_seconds(job) for job in jobs] for _ in range(TURNS)]
    return [statistics.median(column) for column in zip(*turns, strict=True)]


def _seconds(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def scene(seed: int) -> list[Truth]:
    rng = random.Random(seed)
    corners = [(rng.randrange(900), rng.randrange(900)) for _ in range(OBJECTS)]
    boxes = [(x, y, x + rng.randrange(10, 99), y + rng.randrange(10, 99)) for x, y in corners]
    return [Truth(desc=rng.choice(["person", "traffic light", "\u732b"]), box=box) for box in boxes]


@pytest.mark.bench
def test_the_scan_beside_plain_python(shipped, capsys):
    vocabulary, codec = load_bench(shipped, num_samples=1).vocabulary, CODECS["array"]
    ids = [encode_answer(scene(seed), vocabulary, codec).ids[:-1].tolist() for seed in range(ROLLOUTS)]
    asked = [scan_arguments(response, vocabulary) for response in ids]
    compiled, plain = medians(
        lambda: [ops.scan_rollout(*arguments, **codec.grammar) for arguments in asked],
        lambda: [reference.scan_rollout(*arguments, *codec.grammar.values()) for arguments in asked],
    )
    with capsys.disabled():
        print(f"\nscan of {ROLLOUTS} rollouts of {OBJECTS} objects: {compiled * 1e3:.2f} ms,", end=" ")
        print(f"plain Python {plain * 1e3:.0f} ms, ratio {plain / compiled:.0f}")
    assert plain >= 20 * compiled


def raster_iou(first, second) -> np.ndarray:
    """IoU of two lists of boxes drawn on a grid; intersections by a matrix product, the fastest way that we know."""
    masks = [_drawn(boxes) for boxes in (first, second)]
    shared = masks[0] @ masks[1].T
    return shared / (masks[0].sum(1)[:, None] + masks[1].sum(1) - shared)


def _drawn(boxes) -> np.ndarray:
    masks = np.zeros((len(boxes), RASTER, RASTER), dtype=np.float32)
    for mask, box in zip(masks, boxes, strict=True):
        x1, y1, x2, y2 = (round(k * RASTER / 1000) for k in box)
        mask[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)] = 1
    return masks.reshape(len(boxes), -1)


@pytest.mark.bench
def test_exact_boxes_beside_rasterised_ones(capsys, monkeypatch):
    pairs = [(scene(seed), scene(seed + 1000) + scene(seed)[:30]) for seed in range(8)]

    def match_all() -> None:
        for predicted, truth in pairs:
            match_boxes(predicted, truth, **COSTS)

    def match_rasterised() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(assign, "pairwise_iou", raster_iou)
            match_all()

    exact, raster = medians(match_all, match_rasterised)
    with capsys.disabled():
        print(f"\nmatch of {OBJECTS} x {OBJECTS + 30} boxes: {exact / 8 * 1e3:.2f} ms,", end=" ")
        print(f"drawn on {RASTER} x {RASTER} {raster / 8 * 1e3:.1f} ms, ratio {raster / exact:.0f}")
    assert raster >= 20 * exact


@pytest.mark.bench
def test_everything_behind_generate_beside_generate(shipped, capsys):
    bench, codec = load_bench(shipped, num_samples=ROLLOUTS), CODECS["array"]
    settings = {"decode_batch_size": 8, "start_id": "bench", "seed": 0}
    backend = HfBackend(lambda: nullcontext(bench.model), bench.vocabulary, position_index(bench.model), **settings)
    found = []

    def generate() -> None:
        with backend.current_weights(0):
            found[:] = backend.generate(bench.samples, greedy_sampling(max_new_tokens=128), finished_steps=0)

    def learn() -> None:
        for sample, rollout in zip(bench.samples, found, strict=True):
            parsed = parse_rollout(rollout.response_ids, bench.vocabulary, codec)
            match = match_boxes(parsed.objects, sample.objects, **COSTS)
            appended_target(parsed, match, sample.objects, bench.vocabulary, codec, **WEIGHTS)

    drawn, learned = medians(generate, learn)
    with capsys.disabled():
        print(f"\n{ROLLOUTS} rollouts: generate {drawn:.2f} s;", end=" ")
        print(f"parse, match and target {learned * 1e3:.1f} ms, share {learned / drawn:.4f}")
    assert learned < 0.05 * drawn

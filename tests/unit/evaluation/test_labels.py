"""Where labels stand."""

import random

from ds_stage2ab.evaluation.labels import distance, overlap, place_label

AREA = (0.0, 0.0, 400.0, 300.0)
SIZE = (60.0, 20.0)


def test_overlap_and_distance_by_hand():
    assert overlap((0, 0, 10, 10), (6, 8, 20, 20)) == 4 * 2
    assert overlap((0, 0, 10, 10), (10, 0, 20, 10)) == 0
    assert distance((0, 0, 10, 10), (13, 14, 20, 20)) == 5.0  # 3 across, 4 down
    assert distance((0, 0, 10, 10), (5, 5, 20, 20)) == 0


def test_a_free_box_gets_its_label_on_the_preferred_side():
    box = (100.0, 100.0, 200.0, 200.0)
    assert place_label(box, SIZE, AREA, [box], []) == (100.0, 80.0, 160.0, 100.0)
    assert place_label(box, SIZE, AREA, [box], [], ("below", "above")) == (100.0, 200.0, 160.0, 220.0)


def test_a_box_at_the_top_gets_its_label_elsewhere_and_uncovered():
    box = (100.0, 2.0, 200.0, 100.0)
    label = place_label(box, SIZE, AREA, [box], [])
    assert overlap(label, box) == 0
    assert label[1] >= 0


def test_a_taken_place_is_avoided():
    box = (100.0, 100.0, 200.0, 200.0)
    first = place_label(box, SIZE, AREA, [box], [])
    second = place_label(box, SIZE, AREA, [box], [first])
    assert overlap(first, second) == 0
    assert distance(second, box) == 0


def test_labels_stay_inside_and_apart_in_random_scenes():
    random.seed(5)
    for _ in range(50):
        boxes = []
        for _ in range(5):
            x, y = random.uniform(0, 300), random.uniform(0, 200)
            boxes.append((x, y, x + random.uniform(20, 100), y + random.uniform(20, 100)))
        placed = []
        for box in boxes:
            placed.append(place_label(box, SIZE, AREA, boxes, placed))
        for index, label in enumerate(placed):
            assert label[0] >= 0 and label[1] >= 0 and label[2] <= AREA[2] and label[3] <= AREA[3]
            assert all(overlap(label, other) == 0 for other in placed[:index])

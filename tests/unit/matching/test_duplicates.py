"""Objects that an answer says again."""

from ds_stage2ab.carriers import Truth
from ds_stage2ab.matching.duplicates import first_sayings


def said(*boxes):
    return [Truth(desc=f"thing {place}", box=box) for place, box in enumerate(boxes)]


def test_what_repeats_an_earlier_box_is_left_out_whatever_its_name():
    # 96/100 of the first; 90/100: not above 0.9; apart
    assert first_sayings(said((0, 0, 100, 100), (0, 0, 96, 100), (0, 0, 90, 100), (500, 500, 600, 600))) == [0, 2, 3]


def test_a_chain_is_compared_with_what_is_kept():
    """Each is near the one before it; the third is not near the first, which alone is kept before it."""
    assert first_sayings(said((0, 0, 100, 100), (0, 0, 94, 100), (0, 0, 88, 100))) == [0, 2]


def test_nothing_said():
    assert first_sayings([]) == []

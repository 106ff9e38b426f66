import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_stage2ab.codec.bins import (
    bin_of,
    bin_of_token,
    bin_to_pixel,
    coordinate_token,
    fraction_of,
    pixel_to_bin,
)


@pytest.mark.parametrize(
    ("pixel", "size", "expected"),
    [
        (0, 640, 0),
        (639, 640, 999),  # the last pixel: 639 / 639 = 1
        (640, 640, 999),  # the right edge: 999 * 640 / 639 = 1000.56, clamped
        (320, 640, 500),  # 999 * 320 / 639 = 500.28
        (100, 224, 448),  # 999 * 100 / 223 = 447.98
        (1, 1999, 1),  # 999 * 1 / 1998 = 0.5: a half goes up
        (3, 1999, 2),  # 999 * 3 / 1998 = 1.5: up again, where round-half-even would give 2 as well
        (5, 1999, 3),  # 999 * 5 / 1998 = 2.5: up, where round-half-even gives 2
        (0, 1, 0),  # one pixel wide: max(1, 0) = 1
        (-3, 640, 0),
    ],
)
def test_pixel_to_bin_by_hand(pixel, size, expected):
    assert pixel_to_bin(pixel, size) == expected


def test_bin_of_rounds_half_up():
    assert bin_of(0.5) == 500  # 999 * 0.5 = 499.5
    assert bin_of(-0.1) == 0
    assert bin_of(1.1) == 999


def test_bin_to_pixel_by_hand():
    assert bin_to_pixel(999, 640) == 639
    assert bin_to_pixel(333, 1000) == pytest.approx(333.0)  # 333 / 999 * 999
    assert fraction_of(999) == 1.0


@given(st.integers(0, 999))
def test_a_bin_comes_back_from_its_fraction(k):
    assert bin_of(fraction_of(k)) == k


@given(st.integers(1, 20_000).flatmap(lambda size: st.tuples(st.just(size), st.floats(0, max(1, size - 1)))))
def test_a_pixel_comes_back_within_half_a_bin(case):
    size, pixel = case
    back = bin_to_pixel(pixel_to_bin(pixel, size), size)
    assert abs(back - pixel) <= 0.5 * max(1, size - 1) / 999 * (1 + 1e-9)


@given(st.integers(0, 999))
def test_token_text_round_trip(k):
    assert bin_of_token(coordinate_token(k)) == k


@pytest.mark.parametrize(
    "text", ["<|coord_1000|>", "<|coord_07|>", "<|coord_-1|>", "<|coord_|>", " <|coord_1|>", "<|coord_\u0661|>", "7"]
)
def test_other_texts_are_no_coordinate(text):
    assert bin_of_token(text) is None

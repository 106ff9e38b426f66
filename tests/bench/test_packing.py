"""Packing 100,000 lengths beside the `binpacking` package; packed passes beside one segment per pack."""

import math
import random
import time

import pytest

from ds_stage2ab.packs.binpack import pack_lengths
from tests.bench.packing_speed import NUM_SAMPLES, draw, tokens_per_second
from tests.unit.parts import load_bench

LENGTHS, PEER_LENGTHS, CAP, MEDIAN, SIGMA = 100_000, 10_000, 12_000, 2500, 0.8


def drawn(number):
    rng = random.Random(number)
    return [min(CAP, max(1, round(rng.lognormvariate(math.log(MEDIAN), SIGMA)))) for _ in range(number)]


def timed(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, len(result)


@pytest.mark.bench
def test_a_hundred_thousand_lengths(capsys):
    """The peer is quadratic: it is asked for a tenth, which is compared with ours on the same tenth."""
    import binpacking  # installed by `make bench` alone

    seconds, bins = min(timed(pack_lengths, drawn(LENGTHS), CAP) for _ in range(3))
    few = drawn(PEER_LENGTHS)
    own, own_bins = min(timed(pack_lengths, few, CAP) for _ in range(3))
    peer, peer_bins = timed(binpacking.to_constant_volume, few, CAP)
    bound = math.ceil(sum(drawn(LENGTHS)) / CAP)
    with capsys.disabled():
        print(f"\n{LENGTHS:,} lengths: {seconds:.2f} s, {bins:,} packs, lower bound {bound:,};", end=" ")
        print(f"{PEER_LENGTHS:,}: {own * 1e3:.0f} ms and {own_bins:,} packs,", end=" ")
        print(f"binpacking {peer * 1e3:.0f} ms and {peer_bins:,}", end="")
        print(f", ratio {peer / own:.0f}")
    assert seconds < 1
    assert own_bins <= peer_bins


@pytest.mark.bench
def test_packed_passes_beside_one_segment_per_pack(shipped, tmp_path, capsys):
    speeds = tokens_per_second(load_bench(shipped, num_samples=NUM_SAMPLES))
    with capsys.disabled():
        for cap, speed in speeds.items():
            print(f"\ncap {cap or 'of one segment'}: {speed:,.0f} tokens/s, {speed / speeds[None]:.2f}", end="")
    draw(speeds, tmp_path / "packing.png")
    assert (tmp_path / "packing.png").stat().st_size > 10_000
    assert min(speed for cap, speed in speeds.items() if cap) > 1.2 * speeds[None]

"""Answers to scenes of a cat and a dog, and the segments that Channel B makes of them."""

from dataclasses import replace

from ds_stage2ab.carriers import Truth
from ds_stage2ab.codec.text import encode_answer, get_codec
from ds_stage2ab.runtime.timers import Clock
from tests.parts import as_tuples
from tests.unit.parts import PLAIN_LOSS, WrittenBackend

CAT = Truth(desc="cat", box=(10, 20, 110, 120))
DOG = Truth(desc="big dog", box=(500, 501, 600, 700))
GHOST = Truth(desc="ghost", box=(800, 0, 900, 50))  # touches nothing
APPEND = replace(PLAIN_LOSS.channel_b, target="append")
STEP = 3


def answered(bench, *objects):
    """The ids of an answer without its stop token."""
    return as_tuples(encode_answer(objects, bench.vocabulary, get_codec("array"))).ids[:-1]


def segment_of(bench, ids, *, truncated=(), **changes):
    """The segment of the first sample when this is its answer; what it missed is appended."""
    backend = WrittenBackend({0: ids}, truncated=truncated)
    channel = bench.rollout_matching(backend, **{"targets": APPEND, **changes})
    (segment,) = channel.segments(bench.samples[:1], STEP, Clock())
    return segment

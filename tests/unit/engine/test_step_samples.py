"""What a rank notes of its samples in a step: which of them were in a pack whose loss is not finite."""

import math

import pytest

from ds_stage2ab.engine.step_samples import StepSamples
from ds_stage2ab.packs.collate import collate, dummy_pack
from tests.unit.parts import load_bench


def test_a_bad_loss_names_the_samples_of_its_pack_and_a_dummy_has_none(quickstart):
    bench = load_bench(quickstart, num_samples=3)
    samples, segments = StepSamples(bench.samples, ()), bench.segments()
    samples.note_loss(collate(segments[:1], num_passes=1), 0.5)
    assert (samples.nonfinite_loss, samples.nonfinite_ids) == (None, [])
    samples.note_loss(dummy_pack(bench.dummy_segment(), num_passes=1), math.nan)
    assert (samples.nonfinite_loss, samples.nonfinite_ids) == (pytest.approx(math.nan, nan_ok=True), [])
    samples.note_loss(collate(segments[1:], num_passes=1), math.inf)
    assert math.isnan(samples.nonfinite_loss), "the first one"
    assert samples.nonfinite_ids == [bench.samples[1].id, bench.samples[2].id]

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ds_stage2ab.config.batch import accumulation_steps, implied_learners, shape_batch
from ds_stage2ab.errors import ConfigError

COUNTS = st.integers(1, 64)


def test_the_sentence_says_how_a_step_is_spread():
    # 32 = 4 x 2 x 4
    shape = shape_batch(effective_batch_size=32, per_device=4, accumulation=None, learners=2)
    assert shape.sentence == "32 samples per step = 4 per rank x 2 ranks x 4 micro-steps"
    assert shape.samples_per_rank == 16


def test_the_sentence_knows_the_singular():
    shape = shape_batch(effective_batch_size=1, per_device=1, accumulation=1, learners=1)
    assert shape.sentence == "1 sample per step = 1 per rank x 1 rank x 1 micro-step"


def test_the_nearest_valid_values_are_named():
    # 4 x 2 = 8; 30 lies between 24 and 32
    with pytest.raises(ConfigError) as raised:
        accumulation_steps(30, 4, 2)
    assert raised.value.why == "30 is not a multiple of 8 (training.per_device_train_batch_size 4 x 2 learner ranks)"
    assert "24 or 32" in raised.value.fix
    assert raised.value.where == "training.effective_batch_size"


def test_below_one_micro_step_only_the_value_above_is_named():
    with pytest.raises(ConfigError) as raised:
        accumulation_steps(3, 4, 2)
    assert "to 8 or a multiple of it" in raised.value.fix
    assert " 0 " not in raised.value.fix


@given(COUNTS, COUNTS, COUNTS)
def test_what_divides_is_never_refused(per_device, learners, steps):
    assert accumulation_steps(per_device * learners * steps, per_device, learners) == steps


@given(st.integers(1, 4096), COUNTS, COUNTS)
def test_what_does_not_divide_is_always_refused(effective, per_device, learners):
    assume(effective % (per_device * learners))
    with pytest.raises(ConfigError):
        accumulation_steps(effective, per_device, learners)


@pytest.mark.parametrize("given_steps", [1, 3, 8])
def test_an_explicit_accumulation_must_be_the_derived_one(given_steps):
    with pytest.raises(ConfigError) as raised:
        shape_batch(effective_batch_size=32, per_device=4, accumulation=given_steps, learners=2)
    assert "which is 4" in raised.value.why
    assert raised.value.where == "training.gradient_accumulation_steps"
    assert shape_batch(effective_batch_size=32, per_device=4, accumulation=4, learners=2).accumulation_steps == 4


@given(COUNTS, COUNTS, COUNTS)
def test_the_implied_learners_satisfy_the_rules(per_device, learners, steps):
    numbers = {"effective_batch_size": per_device * learners * steps, "per_device": per_device, "accumulation": steps}
    assert implied_learners(**numbers) == learners
    assert shape_batch(**numbers, learners=learners).accumulation_steps == steps


def test_without_an_accumulation_one_learner_is_implied():
    assert implied_learners(effective_batch_size=32, per_device=4, accumulation=None) == 1
    assert implied_learners(effective_batch_size=32, per_device=4, accumulation=3) == 1

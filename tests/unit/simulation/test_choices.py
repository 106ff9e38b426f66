"""The best of several setups."""

from dataclasses import replace
from fractions import Fraction

import pytest

from ds_stage2ab.simulation.choices import best, powers_of_two, simulated, sizes, splits
from tests.unit.simulation.setups import ONE, costs, requests

HALF = Fraction(1, 2)
PRICE = costs(server_pass_s=1.0, learner_a_token_s=0.1, learner_token_s=0.05)
STEPS = [requests(*[10] * 16)]


def test_shares_and_means_are_over_both_channels():
    """A step 16 x 20 x 0.1 = 32 s; B step: 16 answers by 2 permits, 8 x 10 s, then the last packs."""
    found = simulated(STEPS, ONE, PRICE, HALF)
    assert found.a.whole == pytest.approx(32.0)
    assert found.b.rollouts == 80.0
    assert found.seconds == pytest.approx((found.a.whole + found.b.whole) / 2)
    assert found.samples_per_s == pytest.approx(16 / found.seconds)
    assert found.servers_idle == pytest.approx(1 - 80.0 / (found.a.whole + found.b.whole))
    assert found.learners_idle == pytest.approx(1 - (32.0 + 16.0) / (found.a.whole + found.b.whole))


def test_sizes_are_powers_of_two_that_fit_and_give_each_rank_a_permit():
    assert powers_of_two(1) == [1] and powers_of_two(20) == [1, 2, 4, 8, 16]
    found = sizes(STEPS, replace(ONE, learners=4), PRICE, HALF, 20)
    assert [one.setup.decode_batch_size for one in found] == [4, 8, 16]


def test_of_level_choices_the_one_with_fewest_rows_is_best():
    """With 16 requests more than 16 rows bring nothing."""
    assert best(sizes(STEPS, ONE, PRICE, HALF, 64)).setup.decode_batch_size == 16


def test_splits_leave_no_learner_without_samples():
    found = splits(STEPS, ONE, PRICE, HALF, devices=8, per_server=2, most_rows=8)
    assert [(one.setup.learners, one.setup.servers) for one in found] == [(1, 3), (2, 3), (4, 2)]
    assert {one.setup.decode_batch_size for one in found} <= {1, 2, 4, 8}


def test_the_best_split_follows_the_work():
    """Answers that cost nothing ask for learners, learning that costs nothing for servers."""
    many = [requests(*[10] * 64)]
    devices = {"devices": 9, "per_server": 1, "most_rows": 8}
    learning = splits(many, ONE, costs(learner_token_s=1.0, learner_a_token_s=1.0), HALF, **devices)
    assert best(learning).setup.learners == 8
    decoding = splits(many, ONE, costs(server_pass_s=1.0), HALF, **{**devices, "most_rows": 2})
    assert best(decoding).setup.learners == 1

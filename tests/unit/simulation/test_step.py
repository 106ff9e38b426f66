"""A step by hand: what overlaps, what waits, and who is idle."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_stage2ab.simulation.step import a_step, b_step, dealt, proof_s
from tests.unit.simulation.setups import ONE, costs, requests

EVEN = st.lists(st.integers(1, 50), min_size=4, max_size=32).filter(lambda found: len(found) % 2 == 0)


def test_packs_are_trained_while_later_rollouts_are_drawn():
    """Answers at 2, 4, 6 and 8 s; packs of two segments, 1 s each. `packs.online` closes the first when a fifth needs
    room, so with four all come at the end: 8 + 2. With four open packs, one of eight is trained in between."""
    one = replace(ONE, decode_batch_size=1)
    price = costs(server_pass_s=1.0, learner_pack_s=1.0)
    assert b_step(requests(2, 2, 2, 2), one, price).whole == 8.0 + 2.0
    # Eighteen segments of 20 in packs of 40: with the ninth, at 18 s, a fifth pack is opened and the first closed.
    many = b_step(requests(*[2] * 18), one, price)
    assert many.rollouts == 36.0
    assert many.whole == 36.0 + 4.0  # nine packs, five of them on the way
    assert many.learners_busy == 9.0


def test_a_learner_takes_rollouts_in_their_order():
    """The second is there at 1 s, and is matched behind the first, at 5 s."""
    found = b_step(requests(5, 1), ONE, costs(server_pass_s=1.0, learner_match_s=2.0))
    assert found.whole == 5.0 + 2 * 2.0


def test_a_round_begins_when_every_rank_has_its_pack():
    """Rank 0 has the answers of 1 pass, rank 1 those of 7; both packs are trained from 7 s on."""
    setup = replace(ONE, learners=2, servers=2)
    found = b_step(requests(1, 7, 1, 7), setup, costs(server_pass_s=1.0, learner_pack_s=3.0))
    assert found.whole == 7.0 + 3.0
    assert found.learners_busy == 3.0


def test_everybody_waits_for_the_weights():
    """9 bytes to 2 servers: rank 0 sends 18 at 6 a second, a server loads 9 at 9; 1 s fixed, 0.5 s a version."""
    price = costs(
        server_pass_s=1.0, transfer_fixed_s=1.0, transfer_version_s=0.5, transfer_num_bytes=9.0,
        transfer_server_bytes_per_s=9.0, transfer_learner_bytes_per_s=6.0,
    )  # fmt: skip
    setup = replace(ONE, servers=2)
    assert proof_s(setup, price) == 1.0 + 2 * 0.5 + 3.0
    found = b_step(requests(4, 4), setup, price)
    assert (found.whole, found.proof, found.servers_busy, found.learners_busy) == (5.0 + 4.0, 5.0, 4.0, 0.0)
    assert a_step(requests(4, 4), setup, price).whole == 0.0


def test_an_a_step_is_its_samples_its_rounds_and_its_update():
    """Two ranks with 3 and 3 segments of 20 in packs of 40: 2 rounds; the longer pack of each sets the pace."""
    price = costs(learner_a_pack_s=1.0, learner_a_token_s=0.1, learner_sample_s=0.5, learner_update_s=2.0)
    found = a_step(requests(*[1] * 6), replace(ONE, learners=2), price)
    assert found.whole == pytest.approx(3 * 0.5 + (1 + 4) + (1 + 2) + 2)
    assert found.learners_busy == pytest.approx(found.whole) and found.servers_busy == 0.0


def test_gradients_go_around_the_ring():
    """2 (W - 1) / W of the bytes: 4 ranks, 8 bytes at 2 a second: 6 s; one rank sends none."""
    price = costs(learner_exchange_bytes=8.0, learner_exchange_bytes_per_s=2.0)
    assert a_step(requests(1, 1, 1, 1), replace(ONE, learners=4), price).whole == 6.0
    assert a_step(requests(1, 1, 1, 1), ONE, price).whole == 0.0


def test_learners_that_decode_take_the_longest_first_and_train_afterwards():
    """Two slots: 5, 3, 2 end at 5; then both packs of 40 and 20 tokens, offline."""
    found = b_step(requests(2, 3, 5), replace(ONE, servers=0), costs(server_pass_s=1.0, learner_token_s=0.1))
    assert found.rollouts == 5.0
    assert found.whole == found.learners_busy == pytest.approx(5.0 + 6.0)


def test_shared_cores_slow_all_down():
    """Two servers of 4 s each on one core."""
    setup = replace(ONE, servers=2, cores=1)
    assert b_step(requests(4, 4), setup, costs(server_pass_s=1.0)).whole == 8.0


def test_micro_steps_are_dealt_as_the_run_deals_them():
    asked = requests(*range(1, 9))
    own = dealt(asked, replace(ONE, learners=2, per_device=2))
    assert [[one.answer for one in rank] for rank in own] == [[1, 2, 5, 6], [3, 4, 7, 8]]


@given(EVEN, st.integers(1, 5))
def test_idle_shares_are_shares_and_more_servers_are_no_slower(lengths, number):
    price = costs(
        server_pass_s=1.0, server_turnaround_s=0.3, learner_match_s=0.1, learner_token_s=0.05, transfer_fixed_s=1.0
    )
    setup = replace(ONE, learners=2, servers=number, decode_batch_size=2)
    found = b_step(requests(*lengths), setup, price)
    assert 0 <= found.servers_busy <= found.rollouts <= found.whole
    assert 0 <= found.learners_busy <= found.whole
    more = b_step(requests(*lengths), replace(setup, servers=2 * number), price)
    assert more.rollouts <= found.rollouts + 1e-9


def test_a_server_that_is_free_takes_what_waits():
    """One row each. Two servers: 1 9 1 and 1 9 1 passes; three: 1 9, 1 1 1 and 9."""
    price, one_row = costs(server_pass_s=1.0), replace(ONE, decode_batch_size=1)
    asked = requests(1, 1, 9, 9, 1, 1)
    assert [b_step(asked, replace(one_row, servers=count), price).rollouts for count in (2, 3)] == [11.0, 10.0]

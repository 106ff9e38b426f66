"""What stands still in a step."""

import pytest

from ds_stage2ab.metrics.servers import FleetChanges, idle_seconds, server_terms, tell_of_changes


def changes(**seconds):
    return FleetChanges(serving=2, lost=0, back=0, warnings=(), **seconds)


def test_a_learner_waits_where_it_does_not_work():
    """10 s: 1 s data, 2 s of segments that are all a transfer, 4 s of training, 0.5 s optimizer; the rest it waits."""
    seconds = {"data": 1.0, "segments": 2.0, "forward_backward": 4.0, "optimizer": 0.5, "rollout": 2.0, "step": 10.0}
    idle = idle_seconds(changes(busy_s=3.0, proving_s=2.0), seconds)
    assert idle == {"servers_idle": pytest.approx(7.0), "learner_idle": pytest.approx(4.5)}


def test_clocks_that_differ_a_little_give_no_negative_time():
    assert idle_seconds(changes(busy_s=2.0, proving_s=0.0), {"step": 1.0, "optimizer": 1.1}) == {
        "servers_idle": 0.0,
        "learner_idle": 0.0,
    }


def test_a_step_in_which_a_server_was_lost_or_came_back_is_told_apart():
    """Such a step is logged, whatever `logging.every_steps` says."""
    told = [
        server_terms(FleetChanges(serving=2, lost=lost, back=back, warnings=(), busy_s=0.0, proving_s=0.0))
        for lost, back in ((0, 0), (1, 0), (0, 1), (1, 1))
    ]
    assert [tell_of_changes(terms) for terms in (*told, {})] == [False, True, True, True, False]

"""One step of two ranks on the real engine: the gradient of the mean over all their samples, or nothing on either."""

import json

import pytest

from tests.parts import config_values, merged, write_config
from tests.ranks import started
from tests.unit.engine.stage import R


@pytest.fixture
def step(quickstart, tmp_path):
    """What each of two ranks saw of its step."""

    def run(fault, changes):
        config = write_config(tmp_path / "c.yaml", merged(config_values(quickstart, tmp_path, "two"), changes))
        words = ("tests/unit/engine/window_rank.py", str(config), str(quickstart.model), str(quickstart.data), fault)
        with started(2, *words) as ranks:
            said = [rank.communicate(timeout=300) for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0], said
        return [json.loads(out.splitlines()[-1]) for out, _ in said]

    return run


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_the_update_is_that_of_the_mean_over_the_samples_of_both(step, zero_stage):
    """Per-rank sums are averaged by the engine: a wrong factor for the number of ranks would show here."""
    for seen in step("none", {"deepspeed.zero_stage": zero_stage}):
        assert (seen["applied"], seen["wrong"], seen["samples"]) == (True, [], R)
        assert seen["loss"][0] == pytest.approx(seen["loss"][1], rel=1e-5)
        assert seen["moved"]


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_an_infinite_loss_of_one_rank_moves_no_weight_of_either(step, zero_stage):
    """Its gradient is finite: without a factor of NaN both would apply it."""
    for seen in step("infinite", {"deepspeed.zero_stage": zero_stage, "training.max_bad_steps": 1}):
        assert (seen["applied"], seen["moved"]) == (False, [])


def test_both_ranks_know_what_either_skipped_and_how_long_the_slower_one_drew(step):
    """Rank 1 has samples 4 to 7, and skips the first of them; rollouts take 9 s on rank 0 and 5 s on rank 1."""
    for seen in step("uneven", {}):
        assert (seen["applied"], seen["samples"]) == (True, R)
        assert (seen["skipped"], seen["rollout_s"]) == ([4], 9.0)

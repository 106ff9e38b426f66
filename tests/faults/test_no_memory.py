"""A rank may not take any more memory from the place on where it draws rollouts: both end, and one says what helps."""

from ds_stage2ab.errors import EXIT_ENVIRONMENT
from tests.parts import config_values, merged, write_config
from tests.ranks import run

CHANGES = {"training.max_steps": 2, "stage2_ab.schedule.b_ratio": 1, "deepspeed.zero_stage": 3}


def test_a_rank_that_cannot_decode_ends_both_with_one_message(quickstart, tmp_path):
    config = write_config(tmp_path / "c.yaml", merged(config_values(quickstart, tmp_path / "runs", "small"), CHANGES))
    environment = {"FAULT": "drawing:0", "FAULTY_RANK": "1"}
    done = run("tests/faults/planted.py", "--config", str(config), ranks=2, environment=environment)
    assert done.returncode == EXIT_ENVIRONMENT, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    assert "error: rank 1: out of memory in step 1, getting the segments of Channel B, in a pass of 0" in done.stderr
    assert "and the prompts of 4 samples (train-" in done.stderr and ") (packs hold " in done.stderr
    assert "8 samples per step = 4 per rank x 2 ranks x 1 micro-step; ZeRO stage 3)" in done.stderr
    for key in ("rollout_matching.decode_batch_size", "rollout_matching.max_new_tokens", "deepspeed.zero_stage"):
        assert key in done.stderr

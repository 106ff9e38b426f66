"""From a signal to the end of every rank: at most one decode step, one pack and the save."""

import json
import time

import pytest

from ds_stage2ab.errors import EXIT_STOPPED
from tests import ranks
from tests.parts import config_values, merged, write_config

MATCHING = "custom.extra.rollout_matching"
STEP = 2
"""Steps before the one in which the signal comes; after the second a checkpoint is written."""
ALLOWANCE_S = 1.0
"""For the ranks to agree and to leave together, and for two processes to end."""
LONGEST_S = 600
COMMON = {
    "training.optimizer": "adamw",
    "training.max_steps": 9,
    "checkpoint.every_steps": 2,
    "deepspeed.zero_stage": 1,
}
ROLLOUTS = {"stage2_ab.schedule.b_ratio": 1, "training.effective_batch_size": 32, f"{MATCHING}.max_new_tokens": 400}
PACKS = {
    "stage2_ab.schedule.b_ratio": 0,
    "stage2_ab.n_softctx_iter": 4,
    "training.effective_batch_size": 64,
    "training.packing": False,
}


@pytest.mark.bench
@pytest.mark.parametrize(("place", "changes", "whole"), [("rollouts", ROLLOUTS, "rollouts"), ("pack", PACKS, "packs")])
def test_from_the_signal_to_the_end(quickstart, tmp_path, capsys, place, changes, whole):
    """One rank of two gets it. A run that looked between two steps alone would first end the rollouts, or the packs."""
    values = merged(config_values(quickstart, tmp_path / "runs", "stopped"), {**COMMON, **changes})
    words = ("tests/bench/stopped_run.py", "--config", str(write_config(tmp_path / "c.yaml", values)))
    with ranks.started(2, *words, STEP=str(STEP), PLACE=place, OUT=str(tmp_path)) as processes:
        codes = [process.wait(timeout=LONGEST_S) for process in processes]
        ended = time.monotonic()
    assert codes == [EXIT_STOPPED, EXIT_STOPPED], [process.communicate() for process in processes]
    told = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    seen = {name: max(one[name] for one in told) for name in told[0]}
    took, bound = ended - seen["signal"], seen["decode"] + seen["pack"] + seen["save"]
    with capsys.disabled():
        parts = ", ".join(f"{name} {seen[name]:.3f}" for name in ("decode", "pack", "save"))
        print(f"\nSIGTERM in {place}: {took:.2f} s to the end of both ranks; longest of that run, seconds: {parts};")
        print(f"allowance {ALLOWANCE_S}; all {whole} of one step before took {seen[whole]:.1f} s")
    assert took <= bound + ALLOWANCE_S
    assert seen[whole] > bound + ALLOWANCE_S, "else the run could have ended its step first"

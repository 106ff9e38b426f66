"""A run on two hosts with DeepSpeed's own launcher: the same as on one, and ended when the other is lost.

Needs the right to make namespaces (root, or user namespaces) and `ip` of iproute2.
"""

import json
import subprocess
import sys

import pytest

from ds_stage2ab.errors import EXIT_ENVIRONMENT, EXIT_OK
from ds_stage2ab.metrics.journal import read_history
from tests.faults.two_hosts import HOSTS
from tests.parts import ROOT, config_values, merged, write_config
from tests.ranks import train

pytestmark = pytest.mark.soak
TIME_OUT_S = 6


def on_two_hosts(config, *words):
    """(what the program prints, what the ranks and their launchers say)."""
    command = ["unshare", "--map-root-user", "--net", "--uts", sys.executable, "-m", "tests.faults.two_hosts"]
    done = subprocess.run(
        [*command, str(config), *words], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout), done.stderr


def config_of(quickstart, folder, name, **changes):
    both = {"stage2_ab.schedule.b_ratio": 0.5, "deepspeed.zero_stage": 2, "logging.every_steps": 1}
    values = merged(config_values(quickstart, folder / "runs", name), {**both, **changes})
    return write_config(folder / f"{name}.yaml", values)


def numbers_of(folder, name):
    """What the steps were, but for what their clocks say."""
    steps = read_history(folder / "runs" / name / "metrics.jsonl").steps
    clocks = ("time/", "_per_second", "memory")
    return [{key: value for key, value in step.metrics.items() if not any(c in key for c in clocks)} for step in steps]


def test_a_run_on_two_hosts_is_the_run_on_one(quickstart, tmp_path):
    found, said = on_two_hosts(config_of(quickstart, tmp_path, "two"))
    assert found["codes"] == [EXIT_OK, EXIT_OK], said[-4000:]
    assert train(config_of(quickstart, tmp_path, "one"), ranks=2).returncode == EXIT_OK
    assert len(numbers_of(tmp_path, "two")) == 6
    assert numbers_of(tmp_path, "two") == numbers_of(tmp_path, "one")
    environment = json.loads((tmp_path / "runs" / "two" / "environment.json").read_text())
    assert (environment["hosts"], environment["learners"]) == (", ".join(HOSTS), 2)


def test_a_host_that_is_lost_ends_the_other(quickstart, tmp_path):
    """No packet says that it is gone: the time-out finds it, and the rank is named."""
    changes = {"training.max_steps": 500, "deepspeed.collective_timeout_s": TIME_OUT_S, "checkpoint.every_steps": 500}
    config = config_of(quickstart, tmp_path, "lost", **{**changes, "stage2_ab.schedule.b_ratio": 1})
    found, said = on_two_hosts(config, "lost:2")
    assert found["codes"][0] == EXIT_ENVIRONMENT, said[-4000:]
    assert found["seconds"] < 10 * TIME_OUT_S
    assert "rank 1" in said and "Traceback" not in said, said[-4000:]

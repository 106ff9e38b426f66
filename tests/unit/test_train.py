"""Who says it when the training command fails: one rank per machine before the ranks have met, then rank 0."""

import os
import re
import subprocess

import pytest

from ds_stage2ab.engine.build import meeting_remedy
from ds_stage2ab.errors import EXIT_CONFIG, EXIT_DATA, EXIT_ENVIRONMENT
from tests.parts import ROOT, config_values, free_port, merged, write_config
from tests.ranks import python, started

SCRIPT = "ds_stage2ab/train.py"


def train(config, **variables):
    """(exit code, words) of the command as one rank."""
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", **variables}
    command = [python(), SCRIPT, "--config", str(config)]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr


@pytest.mark.parametrize(("local_rank", "speaks"), [("0", True), ("1", False)])
def test_a_config_that_only_the_second_machine_lacks_is_said_there_once(tmp_path, local_rank, speaks):
    code, said = train(tmp_path / "missing.yaml", RANK=str(8 + int(local_rank)), LOCAL_RANK=local_rank)
    assert code == EXIT_CONFIG
    assert ("missing.yaml" in said) == speaks and bool(said) == speaks


def test_a_machine_that_does_not_reach_the_first_says_so(quickstart, tmp_path):
    """Nobody listens at the first one's port; what torch itself says of that comes before."""
    values = merged(config_values(quickstart, tmp_path, "alone"), {"deepspeed.collective_timeout_s": 2})
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "4"}
    code, said = train(write_config(tmp_path / "c.yaml", values), RANK="2", LOCAL_RANK="0", **place)
    assert code == EXIT_ENVIRONMENT
    assert f"error: 127.0.0.1:{place['MASTER_PORT']}: the ranks cannot meet: " in said


def test_a_network_interface_of_another_machine_is_named_with_its_variable(quickstart, tmp_path):
    config = write_config(tmp_path / "c.yaml", config_values(quickstart, tmp_path, "alone"))
    code, said = train(config, GLOO_SOCKET_IFNAME="eth9")
    assert code == EXIT_ENVIRONMENT
    assert "fix: unset GLOO_SOCKET_IFNAME=eth9, which names a network interface" in said
    assert re.search(r"one of this machine: .*\blo\b", said) and "master_port" not in said


@pytest.mark.parametrize(
    ("why", "variables", "remedy"),
    [
        ("port: 29500, code: -98, name: EADDRINUSE", {"NCCL_SOCKET_IFNAME": "eth0"}, "another program uses this port"),
        ("Bootstrap: no socket interface found", {"NCCL_SOCKET_IFNAME": "ib0"}, "unset NCCL_SOCKET_IFNAME=ib0"),
        ("The client socket has timed out after 3000ms", {}, "reaches host:29500"),
    ],
)
def test_each_cause_of_ranks_that_cannot_meet_has_its_remedy(why, variables, remedy):
    assert remedy in meeting_remedy(why, {"MASTER_ADDR": "host", "MASTER_PORT": "29500", **variables})


def test_what_the_ranks_have_agreed_on_rank_0_says_for_all_machines(quickstart, tmp_path):
    """Two machines of one rank each."""
    (tmp_path / "train.jsonl").write_text("no JSON\n")
    values = merged(config_values(quickstart, tmp_path, "both"), {"data.train": str(tmp_path / "train.jsonl")})
    config = write_config(tmp_path / "c.yaml", values)
    with started(2, SCRIPT, "--config", str(config), LOCAL_RANK="0") as ranks:
        first, second = (rank.communicate(timeout=120)[1] for rank in ranks)
        assert [rank.returncode for rank in ranks] == [EXIT_DATA] * 2
    assert first.count("error: ") == 1 and "train.jsonl:1" in first
    assert "error: " not in second

"""The devices on the command line of `ds-stage2ab launch`, with rollout servers and without."""

import argparse

import pytest

from ds_stage2ab.errors import ConfigError
from ds_stage2ab.launch.options import Topology, add_launch_options, read_topology


def options(*words):
    parser = argparse.ArgumentParser()
    add_launch_options(parser)
    return parser.parse_args(["--config", "c.yaml", *words])


def test_topologies():
    gpus = read_topology(options("--rollout-gpus", "0-5", "--train-gpus", "6,7"), None, serves=True)
    assert gpus == Topology(rollout=("0", "1", "2", "3", "4", "5"), train=("6", "7"), learners=2)
    cpu = options("--cpu", "--train-ranks", "2")
    assert read_topology(cpu, "0,1", serves=True) == Topology(rollout=(), train=(), learners=2)


def test_without_servers_the_learners_alone_are_started():
    alone = Topology(rollout=(), train=("4", "5"), learners=2)
    assert read_topology(options("--train-gpus", "0,1"), "4,5", serves=False) == alone
    assert read_topology(options("--cpu", "--train-ranks", "3"), None, serves=False).learners == 3
    for more in (("--rollout-gpus", "2"), ("--tp", "2"), ("--train-ranks", "2")):
        with pytest.raises(ConfigError, match="no rollout servers"):
            read_topology(options("--train-gpus", "0,1", *more), None, serves=False)
    with pytest.raises(ConfigError, match="no rollout servers"):
        read_topology(options(), None, serves=False)

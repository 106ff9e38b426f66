"""The command line of `ds-stage2ab launch`, and the devices that it names."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from ds_stage2ab.config.overrides import add_set_option
from ds_stage2ab.errors import ConfigError

WAIT_S = 1800
MAX_DEVICE = 4095


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Devices of the servers and of the learner; none: the CPU."""

    rollout: tuple[int, ...]
    train: tuple[int, ...]
    learners: int


def read_devices(text: str) -> tuple[int, ...]:
    """`0-5`, `6,7`, `0-2,5` -> device numbers, ascending."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal()) or not int(first) <= int(last) <= MAX_DEVICE:
            raise argparse.ArgumentTypeError(f"{text!r} is no list of devices such as 0-5 or 6,7")
        found += range(int(first), int(last) + 1)
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} names a device twice")
    return tuple(sorted(found))


def read_topology(options: argparse.Namespace) -> Topology:
    """The devices of the command line.

    Raises:
        ConfigError: they do not fit each other.
    """
    on_devices = (options.rollout_gpus, options.train_gpus)
    if options.cpu:
        if options.train_ranks is None or on_devices != (None, None):
            raise ConfigError(
                "--cpu goes with --train-ranks, and without --rollout-gpus and --train-gpus",
                fix="write --cpu --train-ranks 2",
            )
        return Topology(rollout=(), train=(), learners=options.train_ranks)
    if None in on_devices or options.train_ranks is not None:
        raise ConfigError(
            "on GPUs both --rollout-gpus and --train-gpus are needed, and no --train-ranks",
            fix="write --rollout-gpus 0-5 --train-gpus 6,7; on a machine without a GPU --cpu --train-ranks 2",
        )
    both = sorted(set(options.rollout_gpus) & set(options.train_gpus))
    if both:
        raise ConfigError(
            f"{', '.join(map(str, both))} cannot serve and learn at once: --rollout-gpus and --train-gpus overlap",
            fix="give each device to one of the two",
        )
    return Topology(rollout=options.rollout_gpus, train=options.train_gpus, learners=len(options.train_gpus))


def add_launch_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="YAML file")
    parser.add_argument("--rollout-gpus", type=read_devices, metavar="LIST", help="devices of the servers, as in 0-5")
    parser.add_argument("--train-gpus", type=read_devices, metavar="LIST", help="devices of the learner, as in 6,7")
    parser.add_argument("--tp", type=whole_number, metavar="N", help="devices of one replica (default: the config's)")
    parser.add_argument("--cpu", action="store_true", help="no GPU: one replica of each server on the CPU")
    parser.add_argument("--train-ranks", type=whole_number, metavar="N", help="learner ranks, with --cpu")
    parser.add_argument(
        "--server-python",
        type=Path,
        default=Path(sys.executable),
        metavar="PATH",
        help="Python of the environment that has vLLM (default: this one)",
    )
    parser.add_argument(
        "--wait",
        type=whole_number,
        default=WAIT_S,
        metavar="S",
        help=f"seconds until all servers must be ready (default: {WAIT_S})",
    )
    add_set_option(parser)


def whole_number(text: str) -> int:
    """What an option counts."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)

"""The command line of `ds-stage2ab launch`, and the devices that it names.

They are numbered as torch does: within `CUDA_VISIBLE_DEVICES` where that is set, as a cluster's scheduler sets it.
"""

import argparse
import sys
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from ds_stage2ab.config.overrides import add_set_option
from ds_stage2ab.engine.resume import add_resume_options
from ds_stage2ab.errors import ConfigError

WAIT_S = 1800
MAX_DEVICE = 4095
VISIBLE = "CUDA_VISIBLE_DEVICES"
BY_NAME = ("GPU-", "MIG-")
"""Start of a device's UUID, and of that of a part of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Devices of the servers and of the learner, as CUDA_VISIBLE_DEVICES names them; none: the CPU."""

    rollout: tuple[str, ...]
    train: tuple[str, ...]
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


def names_of(numbers: tuple[int, ...], visible: str | None, option: str) -> tuple[str, ...]:
    """The devices of these numbers, as CUDA_VISIBLE_DEVICES names them.

    Args:
        visible: CUDA_VISIBLE_DEVICES of this process: numbers of the driver, UUIDs (`GPU-...`) or parts (`MIG-...`);
            None: all devices of the driver, by its numbers.
        option: of the command line, for the message.

    Raises:
        ConfigError: there is no such device.
    """
    if visible is None:
        return tuple(map(str, numbers))
    entries = [entry.strip() for entry in visible.split(",")]
    # CUDA reads as far as the first entry that names no device.
    usable = list(takewhile(lambda entry: entry.isdecimal() or entry.startswith(BY_NAME), entries))
    missing = [str(number) for number in numbers if number >= len(usable)]
    if missing:
        raise ConfigError(
            f"{option} names device {', '.join(missing)}, and {VISIBLE}={visible} allows {len(usable)}",
            fix=f"number the devices within {VISIBLE}, from 0 to {len(usable) - 1}"
            if usable
            else f"allocate devices, or unset {VISIBLE}",
        )
    return tuple(usable[number] for number in numbers)


def read_topology(options: argparse.Namespace, visible: str | None, *, serves: bool) -> Topology:
    """The devices of the command line.

    Args:
        visible: CUDA_VISIBLE_DEVICES of this process; None: not set.
        serves: whether there are servers to start.

    Raises:
        ConfigError: they do not fit each other, or there are none of these numbers.
    """
    if options.cpu:
        if options.train_ranks is None or (options.rollout_gpus, options.train_gpus) != (None, None):
            raise ConfigError(
                "--cpu goes with --train-ranks, and without --rollout-gpus and --train-gpus",
                fix="write --cpu --train-ranks 2",
            )
        return Topology(rollout=(), train=(), learners=options.train_ranks)
    if not serves:
        return _learners_alone(options, visible)
    if None in (options.rollout_gpus, options.train_gpus) or options.train_ranks is not None:
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
    return Topology(
        rollout=names_of(options.rollout_gpus, visible, "--rollout-gpus"),
        train=names_of(options.train_gpus, visible, "--train-gpus"),
        learners=len(options.train_gpus),
    )


def _learners_alone(options: argparse.Namespace, visible: str | None) -> Topology:
    if options.train_gpus is None or (options.rollout_gpus, options.tp, options.train_ranks) != (None, None, None):
        raise ConfigError(
            "this config has no rollout servers: on GPUs --train-gpus is needed, and nothing else about devices",
            fix="write --train-gpus 0-7, on a machine without a GPU --cpu --train-ranks 2; or set"
            " custom.extra.rollout_matching.rollout_backend to vllm",
        )
    train = names_of(options.train_gpus, visible, "--train-gpus")
    return Topology(rollout=(), train=train, learners=len(train))


def add_launch_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="YAML file")
    parser.add_argument(
        "--rollout-gpus",
        type=read_devices,
        metavar="LIST",
        help=f"devices of the servers, as in 0-5; numbered within {VISIBLE} where that is set",
    )
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
    parser.add_argument(
        "--drafts",
        type=whole_number,
        metavar="N",
        help="tokens that each server drafts ahead, 8 for example; for greedy rollouts (default: none)",
    )
    add_resume_options(parser)
    add_set_option(parser)


def whole_number(text: str) -> int:
    """What an option counts."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)

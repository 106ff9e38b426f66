"""Simulates 8, 64 and 512 devices by assumed costs, and draws and prints what comes out.

    python -m tests.bench.simulation_pictures docs/pictures/simulation.png
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import matplotlib.pyplot as plt

from ds_stage2ab.config.overrides import read_overrides
from ds_stage2ab.preflight.report import preflight_report
from ds_stage2ab.simulation.choices import Choice, best
from ds_stage2ab.simulation.command import Simulation, simulate
from tests.parts import ROOT

CONFIG = ROOT / "configs" / "stage2_ab" / "prod" / "ab_mixed.yaml"
ASSUMED = ROOT / "docs" / "simulation" / "assumed.yaml"
SAMPLES = {8: 128, 64: 512, 512: 2048}
"""Devices -> samples of a step."""
RATE = "learner_bytes_per_s"
SENDS = {"10 GB/s": True, "no bound": False}
"""What rank 0 sends to all servers together -> whether it is as in the file."""
HEAD = (
    *("devices", "samples", "rank 0 sends", "learners", "servers", "D", "A step", "weights", "rollouts", "B step"),
    *("samples/s", "learners idle", "servers idle"),
)
COLOURS = dict(zip(SAMPLES, ("#4477aa", "#ccbb44", "#aa3377"), strict=True))


class Case(NamedTuple):
    """One number of devices, and how fast rank 0 sends."""

    devices: int
    sends: str
    found: Simulation


def simulated(devices: int, sends: str, folder: Path) -> Case:
    text = ASSUMED.read_text(encoding="utf-8")
    stated = folder / "stated.yaml"
    stated.write_text(text if SENDS[sends] else "".join(one for one in text.splitlines(True) if RATE not in one))
    changes = read_overrides([f"training.effective_batch_size={SAMPLES[devices]}"])
    report = preflight_report(CONFIG, changes, learners=1, rollout_devices=6, records=100_000)
    return Case(devices, sends, simulate(report, [stated], devices))


def row(case: Case, one: Choice) -> str:
    seconds = (one.a.whole, one.b.proof, one.b.rollouts, one.b.whole)
    cells = (
        *(case.devices, SAMPLES[case.devices], case.sends),
        *(one.setup.learners, one.setup.servers, one.setup.decode_batch_size),
        *(f"{value:.1f} s" for value in seconds),
        f"{one.samples_per_s:.1f}",
        *(f"{100 * share:.0f} %" for share in (one.learners_idle, one.servers_idle)),
    )
    return f"| {' | '.join(map(str, cells))} |"


def draw(cases: list[Case], path: Path) -> None:
    """Left: every split, by its share of learners; right: what the best split spends a step of each channel on."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for case in cases:
        shares = [100 * one.setup.learners / case.devices for one in case.found.splits]
        speeds = [one.samples_per_s / case.devices for one in case.found.splits]
        name = f"{case.devices} devices" + ("" if SENDS[case.sends] else ", rank 0 sends without bound")
        form = "o-" if SENDS[case.sends] else "o:"
        left.plot(shares, speeds, form, color=COLOURS[case.devices], label=name, markersize=3)
    left.set_xscale("log")
    left.set_xlabel("learners, % of the devices")
    left.set_ylabel("samples per second and device")
    left.legend(fontsize=6)
    own = [case for case in cases if SENDS[case.sends]]
    names = [f"{case.devices}" for case in own]
    chosen = [best(case.found.splits) for case in own]
    parts = {
        "A step": [one.a.whole for one in chosen],
        "B: weights": [one.b.proof for one in chosen],
        "B: rollouts": [one.b.rollouts for one in chosen],
        "B: what learning adds": [one.b.whole - one.b.proof - one.b.rollouts for one in chosen],
    }
    below = [0.0] * len(own)
    for (name, heights), colour in zip(parts.items(), ("#4477aa", "#bbbbbb", "#ccbb44", "#aa3377"), strict=True):
        right.bar(names, heights, bottom=below, label=name, color=colour)
        below = [sum(pair) for pair in zip(below, heights, strict=True)]
    right.set_xlabel("devices, each with its best split")
    right.set_ylabel("seconds of an A and a B step")
    right.legend(fontsize=6)
    figure.suptitle("simulated by assumed costs: nothing of this was run", fontsize=8)
    figure.savefig(path, dpi=110)


def main(path: Path) -> None:
    with TemporaryDirectory() as folder:
        cases = [simulated(devices, sends, Path(folder)) for devices in SAMPLES for sends in SENDS]
    print(f"| {' | '.join(HEAD)} |", f"| {' | '.join('---' for _ in HEAD)} |", sep="\n")
    for case in cases:
        print(row(case, best(case.found.splits)))
    draw(cases, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

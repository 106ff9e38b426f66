"""A simulation in words and as data: tables, how it meets the recorded runs, and all that it assumes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from ds_stage2ab.config.batch import counted
from ds_stage2ab.errors import printable
from ds_stage2ab.simulation.choices import Choice, best
from ds_stage2ab.simulation.command import Simulation
from ds_stage2ab.simulation.costs import Costs

ASSUMED = (
    "a pass of decoding takes pass_s + row_s x its rows, whatever their length; rows wait while a prompt is taken in",
    "a replica is a server of its own; none fails, and requests meet no other queue than their permits",
    "answers are as long as they were, whatever the weights and the sampling",
    "segments are as long as prompt and answer, scaled to the mean that was trained; a pass takes time by its tokens",
    "ranks begin a round together, and it is as long as its longest pack; ZeRO's exchanges are in the costs of a pack",
    "nobody decodes or trains while weights travel",
    "the learners of a split fit their devices (ds-stage2ab plan --gpu-memory checks one split)",
    "evaluations and checkpoints are left out",
)
"""What every simulation takes to be so; `docs/simulation.md` explains it."""
MEASURED = "as measured"
ONE_SIZE = "not known, since only one was recorded: name a run with another one too"
HEAD = (
    *("decode_batch_size", "learners", "servers", "A step", "B step", "weights", "rollouts", "both", "samples/s"),
    *("learners idle", "servers idle"),
)


def as_text(simulation: Simulation) -> str:
    """Everything that was simulated."""
    asked = simulation.asked
    with_servers = bool(asked.setup.servers)
    who = f"{counted(asked.setup.learners, 'learner')}, " + (
        counted(asked.setup.servers, "server replica") if with_servers else "which decode themselves"
    )
    parts = [
        f"simulated steps of {asked.samples} samples, b_ratio {float(asked.b_ratio):g}; {who}; nothing was run",
        _table([asked]),
        *_size_parts(simulation),
    ]
    if simulation.splits:
        parts += [
            f"splits of {simulation.devices} devices, each with its best decode_batch_size",
            _table(simulation.splits, best(simulation.splits)),
        ]
    parts += ["\n".join(_checks(simulation))] if simulation.checks else []
    parts.append("\n".join(["costs", *_costs(simulation)]))
    parts.append("\n".join(["assumed", *(f"  - {line}" for line in (*_notes(simulation), *ASSUMED))]))
    return printable("\n\n".join(parts), keep_lines=True)


def _size_parts(simulation: Simulation) -> list[str]:
    if not simulation.sizes:
        return [f"other decode_batch_size: {ONE_SIZE}"]
    head = f"other decode_batch_size, up to {simulation.inputs.most_rows} rows of a replica"
    return [head, _table(simulation.sizes, best(simulation.sizes))]


def _table(choices: Sequence[Choice], marked: Choice | None = None) -> str:
    """One row for each choice; the best has a star."""
    rows = [HEAD, *(_cells(one) for one in choices)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(HEAD))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    stars = ["  ", *("* " if one is marked else "  " for one in choices)]
    return "\n".join(star + line for star, line in zip(stars, lines, strict=True))


def _cells(one: Choice) -> tuple[str, ...]:
    seconds = (one.a.whole, one.b.whole, one.b.proof, one.b.rollouts, one.seconds)
    idle = (one.learners_idle, one.servers_idle if one.setup.servers else None)
    return (
        str(one.setup.decode_batch_size),
        str(one.setup.learners),
        str(one.setup.servers),
        *(f"{value:.3g} s" for value in seconds),
        f"{one.samples_per_s:.3g}",
        *("-" if share is None else f"{100 * share:.0f} %" for share in idle),
    )


def _checks(simulation: Simulation) -> Iterator[str]:
    yield "the recorded runs, simulated with these costs"
    for run, found in zip(simulation.inputs.runs, simulation.checks, strict=True):
        pairs = [("A", run.a_step_s, found.a.whole), ("B", run.b_step_s, found.b.whole)]
        words = [
            f"{name} step {taken:.3g} s, simulated {own:.3g} s ({100 * (own / taken - 1):+.0f} %)"
            for name, taken, own in pairs
            if taken
        ]
        yield f"  {run.folder}: {'; '.join(words)}"


def _costs(simulation: Simulation) -> Iterator[str]:
    inputs = simulation.inputs
    for part, costs in asdict(inputs.costs).items():
        for name, value in costs.items():
            key = f"{part}.{name}"
            source = "stated" if key in inputs.stated else MEASURED if inputs.runs else "not stated"
            yield f"  {key:32} {'no bound' if math.isinf(value) else f'{value:.4g}':>10}  {source}"


def _notes(simulation: Simulation) -> Iterator[str]:
    inputs = simulation.inputs
    shared = f"{inputs.cores} cores that servers and learners share" if inputs.cores else "a device for each"
    yield f"learners and servers have {shared}"
    if inputs.runs:
        first = inputs.runs[0]
        seen = ", ".join(str(run.setup.decode_batch_size) for run in inputs.runs)
        if inputs.tells_sizes:
            yield f"decode_batch_size was {seen} in the recording: a straight line leads to the others"
        else:
            yield f"decode_batch_size was {seen} in the recording: what another one costs is {ONE_SIZE}"
        yield f"learners cost what they did on {counted(first.setup.learners, 'rank')}, unless the costs say otherwise"
        if first.setup.servers:
            yield (
                f"a transfer takes what it did to {counted(first.setup.servers, 'server')}, unless the costs say"
                " otherwise; each address that was recorded was one replica"
            )
        for run in inputs.runs:
            yield from run.notes


def as_data(simulation: Simulation) -> dict:
    """The same as JSON values; null: no bound."""
    inputs = simulation.inputs
    costs: Costs = inputs.costs
    return {
        "asked": _choice(simulation.asked),
        "decode_batch_sizes": [_choice(one) for one in simulation.sizes],
        "best_decode_batch_size": best(simulation.sizes).setup.decode_batch_size if simulation.sizes else None,
        "devices": simulation.devices,
        "splits": [_choice(one) for one in simulation.splits],
        "best_split": _choice(best(simulation.splits)) if simulation.splits else None,
        "recorded": [
            {"run": str(run.folder), "a_step_s": run.a_step_s, "b_step_s": run.b_step_s, "simulated": _choice(found)}
            for run, found in zip(inputs.runs, simulation.checks, strict=True)
        ],
        "costs": {
            part: {name: None if math.isinf(value) else value for name, value in own.items()}
            for part, own in asdict(costs).items()
        },
        "stated": list(inputs.stated),
        "assumed": [*_notes(simulation), *ASSUMED],
    }


def _choice(one: Choice) -> dict:
    return {
        "learners": one.setup.learners,
        "servers": one.setup.servers,
        "decode_batch_size": one.setup.decode_batch_size,
        "a_step_s": one.a.whole,
        "b_step_s": one.b.whole,
        "weights_s": one.b.proof,
        "rollouts_s": one.b.rollouts,
        "step_s": one.seconds,
        "samples_per_s": one.samples_per_s,
        "learners_idle": one.learners_idle,
        "servers_idle": one.servers_idle if one.setup.servers else None,
    }

"""`ds-stage2ab plan FILE --simulate RUN...`: what its steps would take, and which split of devices is the fastest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

from ds_stage2ab.config.decoding_rules import BEST_OF
from ds_stage2ab.config.sections import Config
from ds_stage2ab.config.servers import BACKEND
from ds_stage2ab.errors import ConfigError
from ds_stage2ab.preflight.report import PreflightReport
from ds_stage2ab.simulation.choices import Choice, simulated, sizes, splits
from ds_stage2ab.simulation.costs import ONE_EACH, Setup
from ds_stage2ab.simulation.stated import Inputs, read_inputs

MOST_REQUESTS = 2048
"""Simulated for each choice, beyond one step: more change the means little."""
EVENLY = Fraction(1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """Everything that is shown of one config."""

    inputs: Inputs
    asked: Choice
    # the config's own devices and batch
    sizes: tuple[Choice, ...]
    # of these devices; empty: what other sizes cost is not known
    splits: tuple[Choice, ...]
    # of as many devices as were asked about
    devices: int | None
    checks: tuple[Choice, ...]
    # each recorded run simulated with its own devices, steps and lengths


def simulate(report: PreflightReport, paths: Sequence[Path], devices: int | None) -> Simulation:
    """Simulate the steps of a config.

    Args:
        report: of the config, on its devices.
        paths: a file of the form of `schemas/simulation.schema.json`, or the folders of runs.
        devices: that are to be split into learners and servers; None: no splits are tried.

    Raises:
        ConfigError: the config and the recording do not go together, or the file of a simulation is wrong.
        DataError: a recording is damaged, or says too little.
        EnvironmentFault: it cannot be read.
    """
    inputs, config = read_inputs(paths), report.config
    setup = _setup(report, inputs)
    samples, b_ratio = report.plan.effective_batch_size, report.plan.b_ratio
    _refuse_other_decoding(config, inputs)
    limits = (config.rollout_matching.max_new_tokens, report.plan.global_max_length)
    steps = inputs.steps(samples, max(1, MOST_REQUESTS // samples), *limits)
    per_server = _devices_of_a_replica(config)
    if devices is not None and (not setup.servers or devices <= per_server):
        words = "a split needs servers (rollout_backend: vllm), and a device for a learner beside one of them"
        raise ConfigError(words, where="--devices", fix=f"leave it out, or give at least {per_server + 1}")
    given, rows = (steps, setup, inputs.costs, b_ratio), inputs.most_rows
    found = Simulation(
        inputs=inputs,
        asked=simulated(*given),
        sizes=tuple(sizes(*given, rows)) if inputs.tells_sizes else (),
        splits=tuple(splits(*given, devices=devices, per_server=per_server, most_rows=rows)) if devices else (),
        devices=devices,
        checks=tuple(_checked(inputs)),
    )
    if (inputs.tells_sizes and not found.sizes) or (devices and not found.splits):
        words = f"with most_rows {rows} there are fewer rows than learners: some rank could never send a request"
        raise ConfigError(words, where=str(paths[0]), fix="raise most_rows, or use fewer learners or more servers")
    return found


def _setup(report: PreflightReport, inputs: Inputs) -> Setup:
    plan = report.plan
    return Setup(
        learners=plan.learners,
        servers=sum(plan.server_replicas or ()),
        decode_batch_size=report.config.rollout_matching.decode_batch_size,
        per_device=plan.per_device,
        pack_tokens=plan.global_max_length,
        packing=plan.packing,
        cores=inputs.cores,
    )


def _devices_of_a_replica(config: Config) -> int:
    servers = config.rollout_matching.vllm.server.servers
    return max((one.tensor_parallel_size for one in servers), default=1)


def _refuse_other_decoding(config: Config, inputs: Inputs) -> None:
    wanted = config.rollout_matching.rollout_backend
    if wanted == "replay":
        words = "a replay decodes nothing: there is nothing to simulate"
        raise ConfigError(words, where=BACKEND, fix="set it to vllm or hf, as it was when the run was recorded")
    if config.rollout_matching.best_of > 1:
        raise ConfigError(ONE_EACH, where=BEST_OF, fix="leave it out: n of each take about as long as n samples")
    if inputs.runs and inputs.runs[0].backend != wanted:
        raise ConfigError(
            f"the config has rollout_backend {wanted}, and the recorded run {inputs.runs[0].backend}: decoding takes"
            " other times there",
            where="--simulate",
            fix=f"record a run with rollout_backend {wanted}",
        )


def _checked(inputs: Inputs) -> list[Choice]:
    """Every recorded run as it was."""
    found = []
    for run in inputs.runs:
        setup = Setup(**{**asdict(run.setup), "cores": inputs.cores})
        pool = run.requests
        steps = [pool[first : first + run.samples] for first in range(0, len(pool), run.samples)][: inputs.most_steps]
        found.append(simulated(steps, setup, inputs.costs, EVENLY))
    return found

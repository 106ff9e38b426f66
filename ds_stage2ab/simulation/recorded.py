"""The folder of a run -> lengths, and what servers and learners took.

Costs are as they were measured. Where servers and learners had to share too few cores, they hold what that cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_stage2ab.config.decoding_rules import BEST_OF
from ds_stage2ab.config.servers import server_slots
from ds_stage2ab.engine.run_folder import CONFIG_FILE, ENVIRONMENT_FILE
from ds_stage2ab.errors import DataError
from ds_stage2ab.metrics.journal import FILE_NAME, StepRecord, read_history
from ds_stage2ab.rollout import record
from ds_stage2ab.rollout.record import UNTOLD, RecordedRollout
from ds_stage2ab.rollout.replay import read_recording
from ds_stage2ab.run_report.runs import mapping_of
from ds_stage2ab.simulation.costs import ONE_EACH, LearnerCosts, Request, Setup, TransferCosts
from ds_stage2ab.simulation.fit import Asked, Decoded, at_server, decoded_alone
from ds_stage2ab.simulation.learning import learner_costs, median_of, transfer_costs

AGAIN = "name a run of this version with B steps, logging.rollouts: true and logging.every_steps: 1"
Step = list[tuple[int, RecordedRollout]]
"""(rank, rollout) of one B step, in the order of their draws."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """What a simulation takes of a run."""

    folder: Path
    backend: str
    setup: Setup
    samples: int
    # of a step
    requests: tuple[Request, ...]
    # of all B steps, in the order of their draws
    decoded: tuple[Decoded, ...]
    # what the costs of decoding are fitted to
    transfer: TransferCosts
    learner: LearnerCosts
    a_step_s: float | None
    b_step_s: float
    # medians without the first; None: there was no A step
    notes: tuple[str, ...]


def read_run(folder: Path) -> RecordedRun:
    """Read what a run has recorded.

    Raises:
        ConfigError: it has recorded no rollouts.
        DataError: a file is damaged, or says too little.
        EnvironmentFault: a file cannot be read.
    """
    steps = _rollouts(folder)
    a_steps, b_steps = _warm(folder, "A"), _warm(folder, "B")
    if not b_steps:
        raise DataError("holds no B step", where=str(folder / FILE_NAME), fix=AGAIN)
    rollouts = [one for number in sorted(steps) for _, one in steps[number]]
    addresses = sorted({one.source for one in rollouts})
    backend, samples, setup = _setup(folder, addresses, {rank for own in steps.values() for rank, _ in own})
    requests = _requests(rollouts, a_steps, b_steps)
    by_draw = {one.draw: request for one, request in zip(rollouts, requests, strict=True)}
    share = samples / setup.learners
    if setup.servers:
        known = [(steps[one.step - 1], one) for one in b_steps if one.step - 1 in steps]
        decoded = tuple(_served(own, one, addresses, by_draw, setup) for own, one in known)
    else:
        decoded = tuple(decoded_alone(one.metrics, setup.decode_batch_size, share) for one in b_steps)
    return RecordedRun(
        folder=folder,
        backend=backend,
        setup=setup,
        samples=samples,
        requests=tuple(requests),
        decoded=decoded,
        transfer=transfer_costs(b_steps, served=bool(setup.servers)),
        learner=learner_costs(a_steps, b_steps, setup.learners, share, served=bool(setup.servers)),
        a_step_s=median_of(a_steps, "time/step_s") if a_steps else None,
        b_step_s=median_of(b_steps, "time/step_s"),
        notes=tuple(_notes(folder, rollouts, a_steps)),
    )


def _notes(folder: Path, rollouts: Sequence[RecordedRollout], a_steps: Sequence[StepRecord]) -> list[str]:
    notes = []
    if any(one.prompt_tokens == UNTOLD for one in rollouts):
        notes.append(
            f"{folder / 'rollouts'}: lines of an earlier version, without prompt_tokens: all prompts are taken to be"
            " alike; record again to know better"
        )
    if not a_steps:
        notes.append(f"{folder / FILE_NAME}: no A step; a pass of one is taken to cost what that of a B step costs")
    return notes


def _setup(folder: Path, addresses: Sequence[str], ranks: set[int]) -> tuple[str, int, Setup]:
    """(backend, samples of a step, who did it)."""
    config: Any = mapping_of(folder / CONFIG_FILE)
    environment: Mapping[str, Any] = mapping_of(folder / ENVIRONMENT_FILE)
    try:
        section, training = config["custom"]["extra"]["rollout_matching"], config["training"]
        served = section["rollout_backend"] == "vllm"
        setup = Setup(
            learners=environment["learners"] if environment else len(ranks),
            servers=len(addresses) if served else 0,
            decode_batch_size=section["decode_batch_size"],
            per_device=training["per_device_train_batch_size"],
            pack_tokens=training["global_max_length"],
            packing=training["packing"],
            cores=None,
        )
        return section["rollout_backend"], training["effective_batch_size"], setup
    except (KeyError, TypeError) as error:
        raise DataError(f"lacks {error}", where=str(folder / CONFIG_FILE), fix=AGAIN) from error


def _warm(folder: Path, channel: str) -> list[StepRecord]:
    """The steps of a channel, without the first if there are more: it connects, compiles and meets cold memory."""
    steps = [one for one in read_history(folder / FILE_NAME).steps if one.channel == channel and one.applied]
    return steps[1:] or steps


def _rollouts(folder: Path) -> dict[int, Step]:
    """Finished steps -> the rollouts that were drawn behind them."""
    recording = read_recording(folder)
    ranks = [int(record.FILE_NAME.fullmatch(path.name)[1]) for path in recording.files]
    steps: dict[int, Step] = {}
    if any(recording.indices):
        raise DataError(ONE_EACH, where=str(folder), fix=f"name a run without {BEST_OF}")
    for place, draw in enumerate(recording.draws):
        found = recording.find(draw, index=0)
        steps.setdefault(found.finished_steps, []).append((ranks[recording.file_of[place]], found))
    return steps


def _requests(
    rollouts: Sequence[RecordedRollout], a_steps: Sequence[StepRecord], b_steps: Sequence[StepRecord]
) -> list[Request]:
    """Segments are as long as prompt and answer together, scaled to the mean that was trained."""
    answers = [max(1, len(one.response_ids) + (one.finish == "stop")) for one in rollouts]
    b_mean = _mean_segment(b_steps)
    guess = max(1, round(b_mean - sum(answers) / len(answers)))
    prompts = [one.prompt_tokens or guess for one in rollouts]
    sums = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    mean = sum(sums) / len(sums)
    b_scale, a_scale = b_mean / mean, (_mean_segment(a_steps) if a_steps else b_mean) / mean
    return [
        Request(prompt=prompt, answer=answer, segment=_scaled(both, b_scale), a_segment=_scaled(both, a_scale))
        for prompt, answer, both in zip(prompts, answers, sums, strict=True)
    ]


def _scaled(length: int, factor: float) -> int:
    return max(1, round(length * factor))


def _mean_segment(steps: Sequence[StepRecord]) -> float:
    kept = sum(one.metrics["train/samples"] - one.metrics["train/skipped_samples"] for one in steps)
    return sum(one.metrics["train/tokens"] for one in steps) / max(1.0, kept)


def _served(
    own: Step, step: StepRecord, addresses: Sequence[str], by_draw: Mapping[int, Request], setup: Setup
) -> Decoded:
    """What the servers did in one step."""
    permits = server_slots(setup.decode_batch_size, [1] * len(addresses), setup.learners)
    parts = []
    for server, address in enumerate(addresses):
        asked = [
            Asked(rank=rank, passes=by_draw[one.draw].answer, prompt=by_draw[one.draw].prompt, seconds=one.seconds)
            for rank, one in own
            if one.source == address
        ]
        parts.append((asked, [dealt[server] for dealt in permits]))
    idle = step.metrics.get("time/servers_idle_s")
    return at_server(parts, None if idle is None else step.metrics["time/step_s"] - idle)

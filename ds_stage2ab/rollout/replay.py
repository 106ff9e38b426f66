"""Replays the rollouts of a recorded run: Channel B without generation, the same on any number of ranks.

A rollout is looked up by its draw, and used where sample, prompt, seed and number of finished steps are those of the
recording. The weights cannot be compared: they are the same if nothing else was changed.
"""

import bisect
import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_stage2ab.carriers import Rollout, Sample
from ds_stage2ab.config.decoding_rules import BEST_OF
from ds_stage2ab.config.rules import MAX_NEW_TOKENS, REPLAY_RUN
from ds_stage2ab.errors import ConfigError, DataError, EnvironmentFault, printable
from ds_stage2ab.rollout.base import Sampling, request_seed, weight_version
from ds_stage2ab.rollout.record import RecordedRollout, from_line, is_served, prompt_digest, recorded_files, replayed

ROLLOUTS = "rollouts"
"""The folder of a run that holds its recording."""
PROMPT_KEYS = "data.system_prompt, data.user_prompt, data.min_pixels, data.max_pixels and model.path"
"""The keys that determine a prompt's ids; model.path by its tokenizer and its chat template."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Where each recorded line is, by draw and index; 28 bytes for each, so that a long run fits in memory.

    The four arrays have one entry for each rollout, ascending.
    """

    folder: Path
    files: tuple[Path, ...]
    is_served: bool
    # whether servers generated it: packs were made online, and must be now, for the same sums
    draws: array
    indices: array
    file_of: array
    # index into `files`
    offsets: array
    # bytes

    def __len__(self) -> int:
        return len(self.draws)

    def find(self, draw: int, index: int) -> RecordedRollout | None:
        """That rollout of a draw, read from its file; None where there is none."""
        wanted = draw, index
        place = bisect.bisect_left(range(len(self)), wanted, key=self._at)
        if place == len(self) or self._at(place) != wanted:
            return None
        path = self.files[self.file_of[place]]
        try:
            with path.open("rb") as file:
                file.seek(self.offsets[place])
                found = from_line(file.readline())
        except (OSError, ValueError) as error:
            raise _changed(path) from error
        if (found.draw, found.index) != wanted:
            raise _changed(path)
        return found

    def _at(self, place: int) -> tuple[int, int]:
        return self.draws[place], self.indices[place]


def read_recording(run: Path) -> Recording:
    """Index a recording: every line is checked, the place of each draw is kept.

    A last line without a line end is left out: a process was killed as it wrote. Of two lines of one rank for one draw
    the later counts, as in a run that went on from a checkpoint.

    Args:
        run: the run folder, or its folder `rollouts/`.

    Raises:
        ConfigError: nothing is recorded there.
        DataError: a line is no recorded rollout, or two ranks have recorded one draw.
        EnvironmentFault: a file cannot be read.
    """
    folder = run / ROLLOUTS if os.path.isdir(run / ROLLOUTS) else run
    found = recorded_files(folder) if os.path.isdir(folder) else ()
    ranks, _, files = zip(*found, strict=True) if found else ((), (), ())
    places: dict[tuple[int, int], tuple[int, int]] = {}
    served = False
    for file, (rank, path) in enumerate(zip(ranks, files, strict=True)):
        for rollout, offset in _lines(path):
            which, served = (rollout.draw, rollout.index), is_served(rollout.source)
            earlier, _ = places.get(which, (file, offset))
            if ranks[earlier] != rank:
                first = files[earlier].name
                raise DataError(
                    f"draw {rollout.draw} stands in {first} too: no telling which of the two was trained on",
                    where=str(path),
                    fix="name a run that was not started again on another number of ranks",
                )
            places[which] = file, offset
    if not places:
        raise ConfigError(
            f"{folder} holds no recorded rollouts (rank-00000.jsonl, ...)",
            where=REPLAY_RUN,
            fix="name the folder of a run with B steps and logging.rollouts: true",
        )
    order = sorted(places)
    return Recording(
        folder=folder,
        files=files,
        is_served=served,
        draws=array("q", (draw for draw, _ in order)),
        indices=array("q", (index for _, index in order)),
        file_of=array("i", (places[which][0] for which in order)),
        offsets=array("q", (places[which][1] for which in order)),
    )


def _lines(path: Path) -> Iterator[tuple[RecordedRollout, int]]:
    """(rollout, offset of its line) of every whole line."""
    offset = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                yield _rollout_of(line, f"{path}:{number}"), offset
                offset += len(line)
    except OSError as error:
        raise EnvironmentFault(
            f"the recorded rollouts cannot be read: {error.strerror}", where=str(path), fix="make the file readable"
        ) from error


def _rollout_of(line: bytes, where: str) -> RecordedRollout:
    try:
        return from_line(line)
    except ValueError as error:
        raise DataError(
            f"this is no recorded rollout: {error}",
            where=where,
            fix="name another run, or record this one again with logging.rollouts: true",
        ) from error


class ReplayBackend:
    """Gives each sample the rollout that was recorded for its draw.

    Evaluations are not recorded: they need a backend that has the weights.

    Args:
        recording: what was recorded.
        start_id: first half of the weight version that the learner expects now.
        seed: `training.seed`.
    """

    probe_gap = None
    transfer = None
    decoding = None
    score = None
    generate_lazily = recover = None

    def __init__(self, recording: Recording, *, start_id: str, seed: int) -> None:
        self.recording = recording
        self.streams = recording.is_served
        self.start_id = start_id
        self.seed = seed

    def current_weights(self, finished_steps: int, *, generates_once: bool = False) -> AbstractContextManager[None]:
        """Nothing to do: reading needs no weights."""
        return nullcontext()

    def resolved(self, sampling: Sampling) -> dict[str, Any]:
        """Empty: answers were sampled when they were recorded."""
        return {}

    def verify_weights(self, finished_steps: int) -> None:
        """Nothing to do: the recorded versions are checked one by one."""

    def settle(self, *, counts: bool) -> None:
        """There are no servers."""

    def generate(self, samples: Sequence[Sample], sampling: Sampling, *, finished_steps: int) -> list[Rollout]:
        """The recorded rollout of each sample, in the samples' order, with the current weight version.

        Raises:
            ConfigError: this run asks for other samples, prompts, seeds, steps or lengths than were recorded.
            DataError: the recording was changed while this run read it.
        """
        assert not sampling.with_probabilities, "no probabilities are recorded"
        return [self._rollout(sample, sampling, finished_steps) for sample in samples]

    def _rollout(self, sample: Sample, sampling: Sampling, finished_steps: int) -> Rollout:
        found = self.recording.find(sample.draw, sample.index)
        if found is None and sample.index:
            raise ConfigError(
                f"{sample.index} rollouts are recorded for draw {sample.draw}, and this run takes the best of more",
                where=BEST_OF,
                fix=f"set {BEST_OF} to {sample.index} or less",
            )
        if found is None:
            raise ConfigError(
                f"no rollout is recorded for draw {sample.draw}, which step {finished_steps + 1} needs: the"
                f" {len(self.recording)} that are recorded reach from draw {self.recording.draws[0]} to draw"
                f" {self.recording.draws[-1]}",
                where=str(self.recording.folder),
                fix="set training.max_steps to a step that was recorded, and training.effective_batch_size and"
                " stage2_ab.schedule.b_ratio as they were",
            )
        self._refuse_another_run(found, sample, finished_steps)
        if len(found.response_ids) > sampling.max_new_tokens:
            raise ConfigError(
                f"the rollout of draw {sample.draw} has {len(found.response_ids)} tokens, more than the"
                f" {sampling.max_new_tokens} that are allowed",
                where=MAX_NEW_TOKENS,
                fix=f"set {MAX_NEW_TOKENS} as it was when the run was recorded",
            )
        return Rollout(
            sample_id=sample.id,
            draw=sample.draw,
            prompt_ids=sample.prompt_ids,
            response_ids=found.response_ids,
            finish=found.finish,
            weight_version=weight_version(self.start_id, finished_steps),
            seed=found.seed,
            source=replayed(found.source),
            seconds=found.seconds,
            attempt=found.attempt,
            probabilities=None,
            index=sample.index,
        )

    def _refuse_another_run(self, found: RecordedRollout, sample: Sample, finished_steps: int) -> None:
        """Raise if the recorded request is another one; in this order, as each difference explains the later ones."""
        seed = request_seed(self.seed, sample.draw, sample.id, sample.index)
        digest = prompt_digest(sample.prompt_ids)
        rows = (
            (
                found.sample_id != sample.id,
                f"of sample {printable(found.sample_id)}, and is of sample {printable(sample.id)} here",
                "set data.train, data.epoch_end and training.seed as they were when the run was recorded",
            ),
            (
                found.prompt_digest != digest,
                f"with another prompt of sample {printable(sample.id)} than it has here",
                f"set {PROMPT_KEYS} as they were when the run was recorded",
            ),
            (
                found.seed != seed,
                f"with the seed {found.seed}, and has the seed {seed} here",
                "set training.seed as it was when the run was recorded",
            ),
            (
                found.weight_steps != str(finished_steps),
                f"by weights of {found.weight_steps} finished steps, and is asked for after {finished_steps}",
                "set training.effective_batch_size as it was when the run was recorded",
            ),
        )
        for differs, what, fix in rows:
            if differs:
                raise ConfigError(
                    f"the rollout of draw {sample.draw} was recorded {what}", where=str(self.recording.folder), fix=fix
                )


def _changed(path: Path) -> DataError:
    return DataError(
        "the recorded rollouts were changed while this run read them",
        where=str(path),
        fix="start again, with a recording that nobody writes to",
    )

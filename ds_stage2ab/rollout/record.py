"""Every rollout of Channel B as a line of JSON, so that what a run trained on can be read afterwards, and trained on
again (`rollout.replay`).

    {"finished_steps": 2, "draw": 16, "sample_id": "train.jsonl:3", "prompt_digest": "9f...", "response_ids": [10, 11],
     "finish": "stop", "weight_version": "5d.../2", "seed": 77, "source": "hf", "seconds": 0.51, "attempt": 1,
     "run_attempt": 2, "prompt_tokens": 310, "text": "[{..."}

The text is for people: a line is read again without it, and from its ids alone. With `best_of` above 1 all rollouts of
a sample are recorded, those behind the first with `"index": 1`, 2, ...

`attempt` counts the servers that got the request, `run_attempt` the starts of the run, one for each line of
`attempts.jsonl`. Each rank writes `rank-00000.jsonl`; when that is full it goes on in `rank-00000.1.jsonl`,
`rank-00000.2.jsonl`, ...
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args

from ds_stage2ab.carriers import Finish, Rollout
from ds_stage2ab.errors import EnvironmentFault
from ds_stage2ab.runtime.files import drop_half_line

MAX_FILE_BYTES = 64 * 2**20
"""Largest size of a file of several lines: 64 MiB, some 20,000 answers of 500 tokens, can still be opened in an
editor."""
DIGEST_BYTES = 16
SERVED = "vllm "
"""Prefix of the source of a server's rollout, before the server's address."""
REPLAYED = "replay of "
"""Prefix of the source of a replayed rollout, before its first source."""
UNTOLD = 0
"""`run_attempt` and `prompt_tokens` of a line that does not have them."""
TEXT, INDEX = "text", "index"
ADDED = ("run_attempt", "prompt_tokens", INDEX)
"""What a line may lack: all of them in earlier versions, the last where it is 0."""
FILE_NAME = re.compile(r"rank-(\d{5,})(?:\.(\d+))?\.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRollout:
    """One line, its fields in the order in which they are written."""

    finished_steps: int
    # of the learner when it was sampled
    draw: int
    sample_id: str
    prompt_digest: str
    # of the prompt's ids, which are many and the same for every image of one size
    response_ids: tuple[int, ...]
    finish: Finish
    weight_version: str
    seed: int
    source: str
    seconds: float
    attempt: int
    run_attempt: int
    # which start of the run, from 1; 0: an earlier version wrote the line, which did not say
    prompt_tokens: int
    # placeholders of images among them; 0: the same
    index: int
    # which of the sample's rollouts, from 0, which is not written

    @property
    def weight_steps(self) -> str:
        """Finished steps of the weights that generated it, from their version."""
        return self.weight_version.rpartition("/")[2]


def prompt_digest(prompt_ids: Sequence[int]) -> str:
    """Identifies a prompt: blake2b of the ids with commas between them, 16 bytes in hex."""
    text = ",".join(map(str, prompt_ids))
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()


def replayed(source: str) -> str:
    """The source of a replayed rollout; the prefix appears once, however often it was recorded."""
    return REPLAYED + source.removeprefix(REPLAYED)


def is_served(source: str) -> bool:
    """Whether a server generated it, now or when it was first recorded."""
    return source.removeprefix(REPLAYED).startswith(SERVED)


def to_line(finished_steps: int, rollout: Rollout, run_attempt: int = 1, text: str | None = None) -> bytes:
    """One line with its end.

    Args:
        text: of the ids; None: left out.
    """
    values = {
        "finished_steps": finished_steps,
        "draw": rollout.draw,
        "sample_id": rollout.sample_id,
        "prompt_digest": prompt_digest(rollout.prompt_ids),
        "response_ids": rollout.response_ids,
        "finish": rollout.finish,
        "weight_version": rollout.weight_version,
        "seed": rollout.seed,
        "source": rollout.source,
        "seconds": round(rollout.seconds, 6),
        "attempt": rollout.attempt,
        "run_attempt": run_attempt,
        "prompt_tokens": len(rollout.prompt_ids),
    }
    if rollout.index:
        values[INDEX] = rollout.index
    if text is not None:
        values[TEXT] = text
    return (json.dumps(values, ensure_ascii=False) + "\n").encode()


def from_line(line: bytes) -> RecordedRollout:
    """The inverse of `to_line`. Raises ValueError, with a message, on any other line but those of earlier versions."""
    try:
        values = json.loads(line)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    names = [field.name for field in fields(RecordedRollout)]
    if isinstance(values, dict):
        values = {**dict.fromkeys(ADDED, UNTOLD), **values}
        if isinstance(values.get(TEXT), str):
            del values[TEXT]
    if not isinstance(values, dict) or sorted(values) != sorted(names):
        raise ValueError(f"it must be a mapping with exactly {', '.join(names)}")
    ids = values["response_ids"]
    if not isinstance(ids, list) or not all(type(token) is int and token >= 0 for token in ids):
        raise ValueError("response_ids must be a list of token ids")
    kinds = {field.name: field.type for field in fields(RecordedRollout) if field.type in (int, str)}
    wrong = [name for name, kind in kinds.items() if type(values[name]) is not kind]
    if wrong or type(values["seconds"]) not in (int, float) or values["finish"] not in get_args(Finish):
        raise ValueError(f"the value of {wrong[0] if wrong else 'seconds or finish'} is none that is written there")
    return RecordedRollout(**{**values, "response_ids": tuple(ids)})


def recorded_files(folder: Path) -> list[tuple[int, int, Path]]:
    """(rank, number, file) of all files in a folder, each rank's in the order in which they were written."""
    named = ((FILE_NAME.fullmatch(path.name), path) for path in folder.glob("rank-*.jsonl"))
    return sorted((int(name[1]), int(name[2] or 0), path) for name, path in named if name)


class RolloutLog:
    """Appends to the files of one rank, each rollout at once and completely.

    Args:
        folder: `rollouts/` of the run folder; made when the first rollouts come.
        rank: names the files, `rank-00000.jsonl`, `rank-00000.1.jsonl`, ...
        run_attempt: which start of the run this is, from 1.
        text_of: ids -> what they say; None: no text is written.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        run_attempt: int = 1,
        text_of: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        self.folder = folder
        self.rank = rank
        self.run_attempt = run_attempt
        self.text_of = text_of
        self.number = max((number for owner, number, _ in recorded_files(folder) if owner == rank), default=0)
        self._is_mended = False

    @property
    def path(self) -> Path:
        """The file that is written now."""
        part = f".{self.number}" if self.number else ""
        return self.folder / f"rank-{self.rank:05d}{part}.jsonl"

    def __call__(self, step: int, rollouts: Sequence[Rollout]) -> None:
        """Write the rollouts that were sampled after `step` finished steps.

        Raises:
            EnvironmentFault: the file cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for rollout in rollouts:
                text = None if self.text_of is None else self.text_of(rollout.response_ids)
                self._append(to_line(step, rollout, self.run_attempt, text))
        except OSError as error:
            raise EnvironmentFault(
                f"the rollouts of step {step + 1} cannot be written: {error.strerror}",
                where=str(self.path),
                fix="free space on that disk, or set logging.rollouts to false",
            ) from error

    def _append(self, line: bytes) -> None:
        """The whole line, or nothing of it."""
        if not self._is_mended:
            drop_half_line(self.path)  # nothing was trained on it
            self._is_mended = True
        size = self.path.stat().st_size if self.path.exists() else 0
        if size and size + len(line) > MAX_FILE_BYTES:
            self.number += 1
        with self.path.open("ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                written = 0
                while written < len(line):
                    written += file.write(line[written:])
            except OSError:
                with suppress(OSError):  # report the first error
                    file.truncate(before)
                raise

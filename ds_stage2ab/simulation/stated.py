"""The file of a simulation, or the folders of runs -> requests and costs.

`schemas/simulation.schema.json` is the form of such a file.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema.exceptions import best_match

from ds_stage2ab.config.document import read_document
from ds_stage2ab.config.report import as_error
from ds_stage2ab.config.schema import Validator, read_json, schema_folder
from ds_stage2ab.errors import ConfigError
from ds_stage2ab.simulation.costs import Costs, LearnerCosts, Request, ServerCosts, TransferCosts
from ds_stage2ab.simulation.fit import server_costs
from ds_stage2ab.simulation.recorded import RecordedRun, read_run

SCHEMA = "simulation.schema.json"
FORM = "docs/simulation.md and schemas/simulation.schema.json have its form"
MOST_SAID = 160  # characters
BOUNDS = ("tokens_per_pass", "server_bytes_per_s", "learner_bytes_per_s", "exchange_bytes_per_s")
"""Null without a recording: one token in a pass, and no bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What is simulated, beside who does it."""

    runs: tuple[RecordedRun, ...]
    stated: tuple[str, ...]
    # keys of the file that hold a value
    costs: Costs
    lengths: dict[str, Any]
    # stated ones; null: as recorded
    cores: int | None
    most_rows: int
    most_steps: int
    seed: int

    @property
    def tells_sizes(self) -> bool:
        """Whether the costs of other `decode_batch_size` are known: of learners that decode themselves one size cannot
        tell what a pass costs beside its rows."""
        sizes = {run.setup.decode_batch_size for run in self.runs}
        return len(sizes) != 1 or self.runs[0].backend != "hf" or "server.pass_s" in self.stated

    def steps(self, samples: int, most: int, max_new_tokens: int, pack_tokens: int) -> list[list[Request]]:
        """The requests of some steps, answers cut where the config cuts them.

        Args:
            samples: of a step.
            most: steps.
        """
        count = min(most, self.most_steps)
        pool = [_cut(one, max_new_tokens, pack_tokens) for one in self._pool(samples * count)]
        count = max(1, min(count, len(pool) // samples))
        return [[pool[place % len(pool)] for place in range(n * samples, (n + 1) * samples)] for n in range(count)]

    def _pool(self, number: int) -> Sequence[Request]:
        """Requests of the first run, in order, with stated lengths in the place of recorded ones; else drawn ones."""
        prompts, answers = (self.lengths[name] for name in ("prompt_tokens", "answer_tokens"))
        recorded = self.runs[0].requests if self.runs else ()
        if recorded and prompts is None and answers is None:
            return recorded
        dice = random.Random(self.seed)
        pool = []
        for place in range(number):
            known = recorded[place % len(recorded)] if recorded else None
            prompt = known.prompt if prompts is None else _drawn(prompts, place, dice)
            answer = known.answer if answers is None else _drawn(answers, place, dice)
            both = prompt + answer
            pool.append(Request(prompt=prompt, answer=answer, segment=both, a_segment=both))
        return pool


def read_inputs(paths: Sequence[Path]) -> Inputs:
    """Of one file, or of the folders of runs.

    Raises:
        ConfigError: the file is none of this form, or leaves something open that no recording says.
        DataError: a recording is damaged, or says too little.
        EnvironmentFault: it cannot be read.
    """
    is_file = len(paths) == 1 and not paths[0].is_dir()
    values = _values(paths[0]) if is_file else filled({"recordings": [str(path) for path in paths]}, _schema())
    runs = tuple(read_run(Path(folder)) for folder in values["recordings"])
    backends = {run.backend for run in runs}
    if len(backends) > 1:
        words = "runs of one backend make one simulation: these are of " + " and ".join(sorted(backends))
        raise ConfigError(words, where="--simulate", fix="name runs of one backend")
    where = str(paths[0])
    decoding = server_costs([one for run in runs for one in run.decoded]) if runs else None
    transfer, learner = (runs[0].transfer, runs[0].learner) if runs else (None, None)
    costs = Costs(
        server=_costs(ServerCosts, values["server"], decoding, f"{where}: server"),
        transfer=_costs(TransferCosts, values["transfer"], transfer, f"{where}: transfer"),
        learner=_costs(LearnerCosts, values["learner"], learner, f"{where}: learner"),
    )
    missing = [name for name, value in values["lengths"].items() if value is None and not runs]
    if missing:
        raise _unstated(f"{where}: lengths", missing)
    return Inputs(
        runs=runs,
        stated=tuple(
            f"{part}.{key}"
            for part in ("lengths", "server", "transfer", "learner")
            for key, value in values[part].items()
            if value is not None
        ),
        costs=costs,
        lengths=values["lengths"],
        cores=values["cores"],
        most_rows=values["most_rows"],
        most_steps=values["steps"],
        seed=values["seed"],
    )


def filled(values: dict, schema: dict) -> dict:
    """With the schema's default for each key that was left out."""
    whole = {}
    for key, child in schema["properties"].items():
        child = {**child, **(schema_of(child["$ref"]) if "$ref" in child else {})}
        if child.get("type") == "object":
            whole[key] = filled(values.get(key) or {}, child)
        else:
            whole[key] = values.get(key, child["default"])
    return whole


def schema_of(reference: str) -> dict:
    return _schema()["$defs"][reference.rpartition("/")[2]]


@cache
def _schema() -> dict:
    return read_json(schema_folder() / SCHEMA)


def _values(path: Path) -> dict:
    document = read_document(path)
    if document.problems:
        raise as_error(document.problems, str(path), document.sources, subject="the file of a simulation")
    problem = best_match(Validator(_schema()).iter_errors(document.values))
    if problem is not None:
        said = f"{problem.json_path.removeprefix('$.')}: {problem.message[:MOST_SAID]}"
        raise ConfigError(said, where=str(path), fix=FORM)
    return filled(document.values, _schema())


def _costs(kind: type, stated: dict, measured: object, where: str) -> Any:
    """The stated values over the measured ones.

    Raises:
        ConfigError: a value is neither.
    """
    known = {name: value for name, value in stated.items() if value is not None}
    if measured is not None:
        return replace(measured, **known)
    bounds = {name: 1.0 if name == BOUNDS[0] else math.inf for name in stated if name in BOUNDS}
    missing = [name for name in stated if name not in known and name not in bounds]
    if missing:
        raise _unstated(where, missing)
    return kind(**{**bounds, **known})


def _unstated(where: str, missing: Sequence[str]) -> ConfigError:
    words = f"{', '.join(missing)} must be stated: there is no recording to take it from"
    return ConfigError(words, where=where, fix="state it, or name the folder of a run in `recordings`")


def _drawn(lengths: Any, place: int, dice: random.Random) -> int:
    """The next of a list, or a draw of the log-normal distribution with this mean and deviation."""
    if isinstance(lengths, list):
        return lengths[place % len(lengths)]
    variance = math.log1p((lengths["deviation"] / lengths["mean"]) ** 2)
    return max(1, round(dice.lognormvariate(math.log(lengths["mean"]) - variance / 2, math.sqrt(variance))))


def _cut(request: Request, max_new_tokens: int, pack_tokens: int) -> Request:
    """As the config allows it; a segment fills a pack at most."""
    return replace(
        request,
        answer=min(request.answer, max_new_tokens),
        segment=min(request.segment, pack_tokens),
        a_segment=min(request.a_segment, pack_tokens),
    )

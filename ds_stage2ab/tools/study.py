"""`make study`: is Channel B worth its time where Channel A alone gains nothing more? Hours, in parts, resumable.

`python -m ds_stage2ab.tools.study --domain digits` makes the scenes, trains to the plateau, runs the rows of
`configs/study/rows.toml`, and writes their table and picture to `docs/study/`. Every run is a folder: one with a
`result.json` is not run again, one without it goes on where it stopped. So the same command goes on after Ctrl-C, and
does nothing but draw where all is done.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from ds_stage2ab.config.load import load_config
from ds_stage2ab.errors import EXIT_STOPPED, ConfigError, EnvironmentFault, Stage2Error, Stopped, exit_code
from ds_stage2ab.metrics.journal import FILE_NAME, History, read_history
from ds_stage2ab.tools.study_rows import (
    F1,
    PLATEAU,
    REPORT,
    SEALED,
    SELECTION,
    START,
    Domain,
    Result,
    Row,
    Run,
    Study,
    all_runs,
    chosen_results,
    read_study,
    runs_of,
    steps_of,
)
from ds_stage2ab.tools.study_table import write_page

COMMAND = "python -m ds_stage2ab.tools.study"
RESULT = "result.json"
ROWS = Path("configs/study/rows.toml")
PAGES = Path("docs/study")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where one domain's runs are made, from what, and by which two commands."""

    domain: Domain
    data: Path
    root: Path
    learning_rate: float
    page: str
    # name of the files with its table and picture
    learners: int = 1
    # of each run

    def file(self, part: str) -> Path:
        """The JSONL of a part of the held-out scenes."""
        if part == SEALED:
            return self.data.with_name(f"{self.data.name}-sealed") / "validation.jsonl"
        return self.data / f"{part}.jsonl"

    def train(self, name: str, words: Sequence[str]) -> Path:
        """Train the run of that name, or go on with it; its folder.

        Raises:
            Stopped: the run was stopped on purpose.
            EnvironmentFault: it ended with another code than 0.
        """
        folder = self.root / name
        settings = [*words, f"logging.root={self.root}", f"logging.name={name}"]
        launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(self.learners)]
        launcher += ["--log_level", "error", "--master_port", str(_free_port())]
        trainer = ["ds_stage2ab/train.py", "--config", str(self.domain.config), "--resume", "auto"]
        code = subprocess.run([*launcher, *trainer, *_set(settings)], check=False).returncode
        if code == EXIT_STOPPED:
            raise Stopped("the run was stopped, and is saved", where=str(folder), fix="the same command goes on")
        if code:
            fix = "the run's own message is above; the same command goes on"
            raise EnvironmentFault(f"training ended with code {code}", where=str(folder), fix=fix)
        return folder

    def evaluate(self, checkpoint: Path, part: str, words: Sequence[str]) -> dict[str, float]:
        """The figures of a checkpoint on a part of the held-out scenes; of `words` those that say how it answers."""
        settings = [word for word in words if word.startswith("data.codec=")]
        settings.append(f"data.validation={self.file(part)}")
        command = [sys.executable, "-m", "ds_stage2ab", "evaluate", "--config", str(self.domain.config)]
        command += ["--checkpoint", str(checkpoint), "--format", "json", *_set(settings)]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            why = f"its evaluation ended with code {done.returncode}"
            raise EnvironmentFault(why, where=str(checkpoint), fix="see the message above")
        return json.loads(done.stdout)["figures"]

    def trained(self, name: str, words: Sequence[str], *, parts: Sequence[str] = ()) -> dict[str, Any]:
        """The result of a run, which is made only if it is not there.

        Args:
            parts: of the held-out scenes to evaluate beside the one that the run itself evaluates.
        """
        written = self.root / name / RESULT
        if not written.is_file():
            folder = self.train(name, words)
            history = read_history(folder / FILE_NAME)
            figures = {SELECTION: history.evaluations[-1].metrics}
            figures |= {part: self.evaluate(folder, part, words) for part in parts}
            _write(written, {"figures": figures, "seconds": seconds_per_step(history), "set": list(words)})
        return json.loads(written.read_text(encoding="utf-8"))


def _set(settings: Sequence[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def _free_port() -> int:
    """For the launcher, so that two studies, or a study and another run, may share a machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _write(path: Path, result: dict[str, Any]) -> None:
    """Whole or not at all: a result that is there is never made again."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def seconds_per_step(history: History) -> dict[str, float]:
    """Channel -> median seconds of its logged steps."""
    taken: dict[str, list[float]] = {}
    for step in history.steps:
        taken.setdefault(step.channel, []).append(step.metrics["time/step_s"])
    return {channel: median(seconds) for channel, seconds in taken.items()}


def newest(folder: Path) -> Path:
    """The Hugging Face folder of a run's newest checkpoint."""
    checkpoints = folder / "checkpoints"
    return checkpoints / (checkpoints / "latest").read_text(encoding="utf-8").strip() / "hf"


def make_scenes(bench: Bench) -> None:
    """Write the scenes of the domain, unless they are there."""
    _run_module(bench.domain.make)
    halve(bench)


def halve(bench: Bench) -> None:
    """The held-out scenes in halves: the first to choose by, the second to report on."""
    lines = (bench.data / "validation.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    half = len(lines) // 2
    for part, held_out in ((SELECTION, lines[:half]), (REPORT, lines[half:])):
        bench.file(part).write_text("".join(held_out), encoding="utf-8")


def _run_module(words: Sequence[str]) -> None:
    code = subprocess.run([sys.executable, "-m", *words], check=False).returncode
    if code:
        raise EnvironmentFault(f"{words[0]} ended with code {code}", fix="see its message above")


def measured_start(bench: Bench, name: str, checkpoint: Path) -> dict[str, Any]:
    """The figures of a checkpoint before any row, on both halves; kept under that name."""
    written = bench.root / name / RESULT
    if not written.is_file():
        written.parent.mkdir(parents=True, exist_ok=True)
        figures = {part: bench.evaluate(checkpoint, part, []) for part in (SELECTION, REPORT)}
        _write(written, {"figures": figures, "seconds": {}, "set": [f"model.path={checkpoint}"]})
    return json.loads(written.read_text(encoding="utf-8"))


def plateau(study: Study, bench: Bench) -> Path:
    """The checkpoint of the first round that gains too little, or of the last round."""
    f1 = measured_start(bench, "start", bench.domain.start)["figures"][SELECTION][F1]
    checkpoint = bench.domain.start
    for number in range(1, study.plateau.rounds + 1):
        name = f"{PLATEAU}-{number}"
        words = [f"model.path={checkpoint}", f"training.max_steps={study.plateau.steps}"]
        words += [f"training.seed={study.seeds[0] + number - 1}", *study.plateau.set]
        reached = bench.trained(name, words)["figures"][SELECTION][F1]
        checkpoint, gained, f1 = newest(bench.root / name), reached - f1, reached
        print(f"{bench.domain.name}: round {number} of Channel A: F1 {f1:.4f}, {gained:+.4f}", flush=True)
        if gained < study.plateau.gain:
            break
    return checkpoint


def starts(study: Study, whole: Bench, bench: Bench, wanted: Sequence[Row]) -> dict[str, Path]:
    """The checkpoints that the rows start from, by name; those that no row needs are not trained.

    Args:
        whole: where the rounds of Channel A are.
        bench: where the starts are.
    """
    found = {PLATEAU: plateau(study, whole)}
    measured_start(bench, f"at-{PLATEAU}", found[PLATEAU])
    for start in study.starts:
        if not any(row.start == start.name for row in wanted):
            continue
        words = [f"model.path={found[PLATEAU]}", f"training.max_steps={start.steps}", *start.set]
        bench.trained(f"at-{start.name}", words, parts=[REPORT])
        found[start.name] = newest(bench.root / f"at-{start.name}")
    return found


def rows_bench(bench: Bench, steps: int) -> Bench:
    """Where the rows run: runs of another length are others."""
    return replace(bench, root=bench.root / f"steps-{steps}")


def words_of(bench: Bench, run: Run, start: Path, steps: int) -> list[str]:
    """The words of `--set` of one run, but for where it lies."""
    words = [f"model.path={start}", f"training.max_steps={steps}", f"training.seed={run.seed}"]
    return [*words, f"training.learning_rate={bench.learning_rate * run.rate:g}", *run.row.set]


def finished(study: Study, rows: Bench) -> list[Result]:
    """What has been measured, by any earlier command."""
    there = [(run, rows.root / run.name / RESULT) for run in all_runs(study)]
    return [_result(run, path) for run, path in there if path.is_file()]


def _result(run: Run, path: Path) -> Result:
    found = json.loads(path.read_text(encoding="utf-8"))
    said = dict(word.split("=", 1) for word in found["set"])
    steps, b_ratio = int(said["training.max_steps"]), float(said["stage2_ab.schedule.b_ratio"])
    return Result(run=run, steps=steps, figures=found["figures"], seconds=found["seconds"], b_ratio=b_ratio)


def run_rows(study: Study, whole: Bench, bench: Bench, wanted: Sequence[Row], seeds: Sequence[int], steps: int) -> None:
    """Every run in order, the page written again after each."""
    checkpoints = starts(study, whole, bench, wanted)
    rows = rows_bench(bench, steps)
    for seed, row in product(seeds, wanted):
        length = steps_of(study, row, steps, seed, finished(study, rows))
        if length is None:
            print(f"{row.name}: left out, {row.seconds_of} has not run with seed {seed}", flush=True)
            continue
        for run in runs_of(study, row, seed, finished(study, rows)):
            rows.trained(run.name, words_of(bench, run, checkpoints[row.start], length), parts=[REPORT])
            write(study, whole, bench, steps)
    write(study, whole, bench, steps)
    print(f"{PAGES / bench.page}.md: {len(finished(study, rows))} runs of {steps} steps", flush=True)


def open_sealed(study: Study, whole: Bench, bench: Bench, steps: int) -> None:
    """Measure the starts and each row's runs at its rate on the scenes that nothing has been tried on."""
    _run_module(bench.domain.sealed)
    rows = rows_bench(bench, steps)
    results = finished(study, rows)
    chosen = [one.run.name for row in study.rows for one in chosen_results(study, row, results)]
    before = [whole.root / "start", *(bench.root / name for name in start_labels(study))]
    for folder in (*before, *(rows.root / name for name in chosen)):
        written = folder / RESULT
        if not written.is_file():
            continue
        result = json.loads(written.read_text(encoding="utf-8"))
        if SEALED not in result["figures"]:
            trained = (folder / "checkpoints").is_dir()
            checkpoint = folder if trained else Path(result["set"][0].removeprefix("model.path="))
            result["figures"][SEALED] = bench.evaluate(checkpoint, SEALED, result["set"])
            _write(written, result)
    write(study, whole, bench, steps)


def start_labels(study: Study) -> dict[str, str]:
    """Folder of what was measured before any row -> how the page calls it."""
    names = {"start": START, f"at-{PLATEAU}": "after the rounds of A"}
    return names | {f"at-{one.name}": f"the start of {one.name} rows" for one in study.starts}


def write(study: Study, whole: Bench, bench: Bench, steps: int) -> None:
    """The page of what has run."""
    there = {label: bench.root / name / RESULT for name, label in start_labels(study).items()}
    there[START] = whole.root / "start" / RESULT
    measured = {label: json.loads(path.read_text(encoding="utf-8")) for label, path in there.items() if path.is_file()}
    folders = [whole.root / f"{PLATEAU}-{number}" for number in range(1, study.plateau.rounds + 1)]
    rounds = [read_history(folder / FILE_NAME) for folder in folders if (folder / RESULT).is_file()]
    results = finished(study, rows_bench(bench, steps))
    write_page(PAGES / bench.page, study, bench.domain, measured, rounds, results, steps)


def bench_of(domain: Domain, learners: int) -> Bench:
    """What a domain's config says of its folders and its learning rate."""
    config = load_config(domain.config).config
    there = {"data": config.data.train.parent, "root": config.logging.root, "page": domain.name}
    return Bench(domain=domain, learners=learners, learning_rate=config.training.learning_rate, **there)


def after_rounds(study: Study, bench: Bench, rounds: int | None) -> tuple[Study, Bench]:
    """The study, and where its starts and rows are: of one that starts before the plateau apart from the others."""
    if rounds is None:
        return study, bench
    name = f"rounds-{rounds}"
    early = replace(study, plateau=replace(study.plateau, rounds=rounds))
    return early, replace(bench, root=bench.root / name, page=f"{bench.page}-{name}")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--domain", default="digits", help="of the rows' file (default: digits)")
    parser.add_argument("--rows", metavar="NAME,...", help="these alone (default: all)")
    parser.add_argument("--seeds", type=int, metavar="N", help="the first so many seeds (default: all)")
    parser.add_argument("--steps", type=int, metavar="N", help="of each run (default: the file's)")
    parser.add_argument("--rounds", type=int, metavar="N", help="of Channel A at most (default: the file's)")
    parser.add_argument("--learners", type=int, default=1, metavar="N", help="ranks of each run (default: 1)")
    what = "and then measure the chosen runs on the scenes kept for the end"
    parser.add_argument("--open-sealed", action="store_true", help=what)
    options = parser.parse_args(arguments)
    try:
        study = read_study(ROWS)
        whole = bench_of(_named(study.domains, options.domain, "--domain"), options.learners)
        study, bench = after_rounds(study, whole, options.rounds)
        names = options.rows.split(",") if options.rows else [row.name for row in study.rows]
        wanted = [_named(study.rows, name, "--rows") for name in names]
        make_scenes(whole)
        steps = options.steps or study.steps
        run_rows(study, whole, bench, wanted, study.seeds[: options.seeds], steps)
        if options.open_sealed:
            open_sealed(study, whole, bench, steps)
    except Stage2Error as error:
        print(error, file=sys.stderr)
        return exit_code(error)
    return 0


def _named(choices: Sequence[Any], name: str, where: str) -> Any:
    """The one of that name."""
    for one in choices:
        if one.name == name:
            return one
    there = ", ".join(one.name for one in choices)
    raise ConfigError(f"there is no {name}", where=where, fix=f"name one of {there}")


if __name__ == "__main__":
    sys.exit(main())

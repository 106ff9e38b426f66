"""`make study`: is Channel B worth its time where Channel A alone gains nothing more? Hours, in parts, resumable.

`python -m ds_stage2ab.tools.study --domain digits` makes the scenes, trains to the plateau, runs the rows of
`configs/study/rows.toml`, and writes their results, table and picture to `docs/study/`. What stands in the file of
results is not run again, and a run that has begun goes on where it stopped. So the same command goes on after Ctrl-C or
on another machine, and does nothing but draw where all is done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from ds_stage2ab.config.load import load_config
from ds_stage2ab.errors import ConfigError, Stage2Error, exit_code
from ds_stage2ab.tools.study_bench import Bench, Results, run_module
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
ROWS = Path("configs/study/rows.toml")
PAGES = Path("docs/study")
HALVES = (SELECTION, REPORT)


def make_scenes(bench: Bench) -> None:
    """Write the scenes of the domain, unless they are there; the held-out ones in halves, to choose by and to report
    on."""
    run_module(bench.domain.make)
    lines = (bench.data / "validation.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    half = len(lines) // 2
    for part, held_out in zip(HALVES, (lines[:half], lines[half:]), strict=True):
        bench.file(part).write_text("".join(held_out), encoding="utf-8")


def plateau(study: Study, bench: Bench) -> Path:
    """The checkpoint that one more round of Channel A improves too little, or that of the last round."""
    f1 = bench.measured("start", bench.domain.start, HALVES)["figures"][SELECTION][F1]
    checkpoint = bench.domain.start
    for number in range(1, study.plateau.rounds + 1):
        name = f"{PLATEAU}-{number}"
        words = [f"model.path={checkpoint}", f"training.max_steps={study.plateau.steps}"]
        words += [f"training.seed={study.seeds[0] + number - 1}", *study.plateau.set]
        reached = bench.trained(name, words, parts=[SELECTION])["figures"][SELECTION][F1]
        print(f"{bench.domain.name}: round {number} of Channel A: F1 {reached:.4f}, {reached - f1:+.4f}", flush=True)
        if reached - f1 < study.plateau.gain:
            return checkpoint
        checkpoint, f1 = bench.checkpoint(name), reached
    return checkpoint


def starts(study: Study, bench: Bench, wanted: Sequence[Row]) -> dict[str, Path]:
    """The checkpoints that the rows start from, by name; those that no row needs are not trained."""
    found = {PLATEAU: plateau(study, bench)}
    if found[PLATEAU] != bench.domain.start:
        bench.measured(f"at-{PLATEAU}", found[PLATEAU], HALVES)
    for start in study.starts:
        if any(row.start == start.name for row in wanted):
            words = [f"model.path={found[PLATEAU]}", f"training.max_steps={start.steps}", *start.set]
            bench.trained(f"at-{start.name}", words, parts=HALVES)
            found[start.name] = bench.checkpoint(f"at-{start.name}")
    return found


def name_of(run: Run, steps: int) -> str:
    """Of its folder and its result: runs of another length are others."""
    return f"steps-{steps}/{run.name}"


def words_of(bench: Bench, run: Run, start: Path, steps: int) -> list[str]:
    """The words of `--set` of one run, but for where it lies."""
    words = [f"model.path={start}", f"training.max_steps={steps}", f"training.seed={run.seed}"]
    return [*words, f"training.learning_rate={bench.learning_rate * run.rate:g}", *run.row.set]


def finished(study: Study, results: Results, steps: int) -> list[Result]:
    """What has been measured, by any earlier command."""
    return [_result(run, results[name]) for run in all_runs(study) if (name := name_of(run, steps)) in results]


def _result(run: Run, found: dict[str, Any]) -> Result:
    said = dict(word.split("=", 1) for word in found["set"])
    steps, b_ratio = int(said["training.max_steps"]), float(said["stage2_ab.schedule.b_ratio"])
    return Result(run=run, steps=steps, figures=found["figures"], seconds=found["seconds"], b_ratio=b_ratio)


def run_rows(study: Study, bench: Bench, wanted: Sequence[Row], seeds: Sequence[int], steps: int) -> None:
    """Every run in order, the page written again after each."""
    checkpoints = starts(study, bench, wanted)
    for seed, row in product(seeds, wanted):
        length = steps_of(study, row, steps, seed, finished(study, bench.results, steps))
        if length is None:
            print(f"{row.name}: left out, {row.seconds_of} has not run with seed {seed}", flush=True)
            continue
        for run in runs_of(study, row, seed, finished(study, bench.results, steps)):
            words = words_of(bench, run, checkpoints[row.start], length)
            bench.trained(name_of(run, steps), words, parts=HALVES)
            write(study, bench, steps)
    write(study, bench, steps)
    print(f"{page_of(bench, steps)}.md: {len(finished(study, bench.results, steps))} runs", flush=True)


def open_sealed(study: Study, bench: Bench, wanted: Sequence[Row], steps: int) -> None:
    """Measure the starts and the rows' runs at their rate on the scenes that nothing has been tried on."""
    run_module(bench.domain.sealed)
    bench.measure_more("start", SEALED, bench.domain.start)
    names = [name for name in start_labels(study) if name != "start" and name in bench.results]
    results = finished(study, bench.results, steps)
    names += [name_of(one.run, steps) for row in wanted for one in chosen_results(study, row, results)]
    for name in names:
        said = bench.results[name]["set"]
        is_run = any(word.startswith("training.max_steps=") for word in said)
        path = bench.checkpoint(name) if is_run else Path(said[0].removeprefix("model.path="))
        bench.measure_more(name, SEALED, path)
    write(study, bench, steps)


def start_labels(study: Study) -> dict[str, str]:
    """Name of what was measured before any row -> how the page calls it."""
    names = {"start": START, f"at-{PLATEAU}": "after the rounds of A"}
    return names | {f"at-{one.name}": f"the start of {one.name} rows" for one in study.starts}


def page_of(bench: Bench, steps: int) -> Path:
    """The path of a page without its ending."""
    return PAGES / f"{bench.domain.name}-{steps}"


def write(study: Study, bench: Bench, steps: int) -> None:
    """The page of what has run."""
    results = bench.results
    measured = {label: results[name] for name, label in start_labels(study).items() if name in results}
    names = [f"{PLATEAU}-{number}" for number in range(1, study.plateau.rounds + 1)]
    rounds = [results[name] for name in names if name in results]
    write_page(page_of(bench, steps), study, bench.domain, measured, rounds, finished(study, results, steps), steps)


def bench_of(domain: Domain, learners: int) -> Bench:
    """What a domain's config says of its folders and its learning rate."""
    config = load_config(domain.config).config
    return Bench(
        domain=domain,
        data=config.data.train.parent,
        root=config.logging.root,
        results=Results(PAGES / f"{domain.name}.jsonl"),
        learning_rate=config.training.learning_rate,
        learners=learners,
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--domain", default="digits", help="of the rows' file (default: digits)")
    parser.add_argument("--rows", metavar="NAME,...", help="these alone (default: all)")
    parser.add_argument("--seeds", type=int, metavar="N", help="the first so many seeds (default: all)")
    parser.add_argument("--steps", type=int, metavar="N", help="of each run (default: the file's)")
    parser.add_argument("--learners", type=int, default=1, metavar="N", help="ranks of each run (default: 1)")
    what = "and then measure the chosen runs on the scenes kept for the end"
    parser.add_argument("--open-sealed", action="store_true", help=what)
    options = parser.parse_args(arguments)
    try:
        study = read_study(ROWS)
        bench = bench_of(_named(study.domains, options.domain, "--domain"), options.learners)
        names = options.rows.split(",") if options.rows else [row.name for row in study.rows]
        wanted = [_named(study.rows, name, "--rows") for name in names]
        make_scenes(bench)
        steps = options.steps or study.steps
        run_rows(study, bench, wanted, study.seeds[: options.seeds], steps)
        if options.open_sealed:
            open_sealed(study, bench, wanted, steps)
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

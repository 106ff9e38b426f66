"""`make gpu`: what a machine with one GPU can show of this package, as one table, within nine minutes.

    python -m tests.gpu.check --device cuda|cpu [--wheels FOLDER]

The machine needs CUDA and torch; `--wheels` names a folder of wheels with the other dependencies, which are unpacked
below build/ and not installed. Each line is a process of its own (`tests/gpu/lines.py`), so that one that dies takes no
other with it. Exit code 1 if a line failed, or was not reached in time.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
WITHIN_S = 530  # of nine minutes, with some left for ending
PACKAGES = ROOT / "build" / "gpu" / "packages"
PRECISIONS, STAGES = ("fp32", "bf16"), ("1", "2", "3")
LINES = (
    ("device",),
    ("data",),
    ("build",),
    ("ops",),
    *(("objective", precision) for precision in PRECISIONS),
    *(("train", precision, stage) for precision in PRECISIONS for stage in STAGES),
    ("stages",),
    ("memory",),
    *(("decode", precision) for precision in PRECISIONS),
    *(("capture", precision, drafts) for precision in PRECISIONS for drafts in ("plain", "drafts")),
)
"""Name of a function of `lines.py`, and its arguments; later ones use what earlier ones have made."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one line."""

    line: tuple[str, ...]
    passed: bool
    seen: str
    seconds: float


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.check", description=__doc__.splitlines()[0])
    parser.add_argument("--device", required=True, choices=("cuda", "cpu"))
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="wheels of what the machine lacks beside torch")
    options = parser.parse_args(words)
    deadline = time.monotonic() + WITHIN_S
    if options.wheels is not None:
        unpack(options.wheels, PACKAGES)
    with TemporaryDirectory(prefix="gpu-check-") as folder:
        outcomes = []
        for line in LINES:
            outcomes.append(outcome_of(line, options.device, Path(folder), deadline))
            print(row(outcomes[-1]), flush=True)
    failed = sum(not one.passed for one in outcomes)
    print(f"{len(outcomes) - failed} of {len(outcomes)} lines passed on {options.device}")
    return int(failed > 0)


def unpack(wheels: Path, target: Path) -> None:
    """Put every wheel of a folder where `environment` finds it; nothing is asked of the network."""
    files = sorted(map(str, wheels.glob("*.whl")))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
    subprocess.run([*pip, "--target", str(target), *files], check=True)


def environment(device: str) -> dict[str, str]:
    """Of every line: this checkout, what was unpacked, and DeepSpeed's name for the device."""
    paths = [str(ROOT), str(PACKAGES), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "DS_ACCELERATOR": device}


def outcome_of(line: tuple[str, ...], device: str, folder: Path, deadline: float) -> Outcome:
    """Run a line, until the deadline at most; what it has started ends with it."""
    start = time.monotonic()
    if start > deadline:
        return Outcome(line, False, "not reached within nine minutes", 0.0)
    name, *words = line
    command = [sys.executable, "-m", "tests.gpu.lines", name, device, str(folder), *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment(device), start_new_session=True, **pipes) as process:
        try:
            out, err = process.communicate(timeout=deadline - start)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the session that was started here
            process.communicate()
            return Outcome(line, False, "not done within nine minutes", time.monotonic() - start)
    passed, seen = read(process.returncode, out, err)
    return Outcome(line, passed, seen, time.monotonic() - start)


def read(code: int, out: str, err: str) -> tuple[bool, str]:
    """(passed, what was seen), from what a line has printed last."""
    try:
        told = json.loads(out.strip().splitlines()[-1])
        return bool(told["passed"]) and code == 0, told["seen"]
    except (IndexError, ValueError, KeyError, TypeError):
        last = (err.strip() or out.strip() or "nothing").splitlines()[-1]
        return False, f"ended with code {code}, and said: {last}"


def row(outcome: Outcome) -> str:
    name = " ".join(outcome.line)
    return f"{name:<14} {'passed' if outcome.passed else 'FAILED'}  {outcome.seconds:6.1f} s  {outcome.seen}"


if __name__ == "__main__":
    sys.exit(main())

"""Config files that no comment can describe: too large, too deep, no text, no file. Made on the spot, from a table."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.parts import ROOT

TIMEOUT_S = 60  # far above what a test of this machine may ever see: a hang, not a slow answer


@dataclass(frozen=True, slots=True)
class Answer:
    """What the validator did with a file."""

    code: int
    text: str
    errors: str
    seconds: float
    peak_mib: float
    # largest resident set of the process


def bomb(levels: int) -> str:
    """Nine aliases of nine aliases of ...: 9 ** levels values in a few lines."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


def _text(content: str) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content.encode("utf-8")) and None


def _bytes(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def _fifty_mb(path: Path) -> None:
    with path.open("wb") as stream:
        for _ in range(50):
            stream.write(b"seed: 1\n" * (2**20 // 8))


def _loop(path: Path) -> None:
    os.symlink(path.name, path)


# name -> (makes the file, exit code, a piece of the answer)
CASES: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "empty": (_text(""), 1, "is empty"),
    "blank": (_text("\n\n   \n"), 1, "is empty"),
    "comments_alone": (_text("# nothing\n# at all\n"), 1, "is empty"),
    "null": (_text("null\n"), 1, "where `key: value` lines are expected"),
    "fifty_mb": (_fifty_mb, 1, "is larger than"),
    "one_line_of_a_megabyte": (_text("a: " + "x" * 2**20), 1, "is larger than"),
    "a_long_line": (_text("data: {user_prompt: " + "x" * 200_000), 1, "is not YAML"),
    "hundred_thousand_keys": (_text("".join(f"k{i}: 1\n" for i in range(100_000))), 1, "is larger than"),
    "twenty_thousand_keys": (_text("".join(f"k{i}: 1\n" for i in range(20_000))), 1, "holds more than"),
    "deep_brackets": (_text("a: " + "[" * 10_000), 1, "nested more than"),
    "deep_braces": (_text("a: " + "{a: " * 10_000), 1, "nested more than"),
    "deep_blocks": (_text("".join(f"{' ' * i}a:\n" for i in range(700))), 1, "nested more than"),
    "deep_list": (_text("- " * 10_000 + "x"), 1, "nested more than"),
    "alias_bomb": (_text(bomb(12)), 1, "holds more than"),
    "alias_to_itself": (_text("a: &a [*a]"), 1, "no anchor &a ends before this alias"),
    "byte_order_mark": (_bytes(b"\xef\xbb\xbftraining: {}\n"), 1, "byte order mark"),
    "null_bytes": (_bytes(b"training:\0\n"), 1, "U+0000"),
    "python_tag": (_text("training: !!python/object/apply:os.system [echo]\n"), 1, "the tag"),
    "not_utf_8": (_bytes(b"data: {user_prompt: caf\xe9}\n"), 2, "is not UTF-8"),
    "utf_16": (_bytes("training: {}\n".encode("utf-16")), 2, "is not UTF-8"),
    "picture": (_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8), 2, "is not UTF-8"),
    "fifo": (os.mkfifo, 2, "is no file"),
    "folder": (Path.mkdir, 2, "is a folder"),
    "device": (lambda path: os.symlink("/dev/zero", path), 2, "is no file"),
    "missing": (lambda path: None, 2, "does not exist"),
    "link_to_itself": (_loop, 2, "does not exist"),
}


# A process's peak begins with the size of the one that started it, and a test session with torch is large: a small
# process stands between them.
_BETWEEN = f"""
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], capture_output=True, timeout={TIMEOUT_S}, check=False)
seconds = time.perf_counter() - start
texts = [stream.decode("utf-8", "backslashreplace") for stream in (done.stdout, done.stderr)]
peak_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([done.returncode, *texts, seconds, peak_kib / 1024]))
"""


def judge(name: str, folder: Path) -> Answer:
    """Make the file of a case and give it to the validator, in a process of its own."""
    make, _, _ = CASES[name]
    path = folder / f"{name}.yaml"
    make(path)
    command = [sys.executable, "-c", _BETWEEN, sys.executable, "-m", "ds_stage2ab.validate", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2 * TIMEOUT_S, check=True)
    return Answer(*json.loads(done.stdout))

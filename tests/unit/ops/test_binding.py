"""Which code is bound, seen from fresh processes: a process binds once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ds_stage2ab.ops import reference
from ds_stage2ab.ops.binding import NAMES, self_test
from tests.parts import ROOT

USE = """
import torch
from ds_stage2ab import ops
zero = torch.tensor([0])
print(ops.implementation())
print(ops.sample_tokens(torch.tensor([[1.0, 3.0, 2.0]]), 1.0, 1, 1.0, zero, zero).tolist())
words = (zero, torch.tensor(list(b"[1]"), dtype=torch.uint8), torch.tensor([0, 3]), torch.tensor([-1]))
print(ops.scan_rollout(*words, opening="[", closing="]", key_head="", quoted=False)[0].tolist())
"""
ANSWERS = ["[1]", "[[3, 1, 2, -1, -1, -1]]"]
# of three scores the best one alone may be drawn; a number (3) from byte 1 to 2, in nothing and no coordinate


def use(folder: Path, **variables: str) -> tuple[list[str], str]:
    """Lines of the standard output, and the standard error, of a process that imports the package of `folder`."""
    kept = {name: value for name, value in os.environ.items() if name != "DS_STAGE2AB_NO_EXT"}
    environment = {**kept, "PYTHONPATH": str(folder), **variables}
    options = {"cwd": folder, "env": environment, "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([sys.executable, "-c", USE], check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with the package's ops and nothing compiled."""
    shutil.copytree(ROOT / "ds_stage2ab" / "ops", tmp_path / "ds_stage2ab" / "ops")
    shutil.copy(ROOT / "ds_stage2ab" / "__init__.py", tmp_path / "ds_stage2ab")
    return tmp_path


def test_the_library_can_be_switched_off():
    lines, errors = use(ROOT, DS_STAGE2AB_NO_EXT="1")
    assert lines == ["reference (DS_STAGE2AB_NO_EXT=1)", *ANSWERS]
    assert "Warning" not in errors


def test_without_a_library_the_reference_is_used_and_said(package: Path):
    lines, errors = use(package)
    assert lines[0].startswith("reference (no compiled library")
    assert lines[1:] == ANSWERS
    assert "Warning" not in errors


@pytest.mark.parametrize("content", [b"", b"no library", b"\x7fELF" + bytes(60)], ids=["empty", "text", "damaged"])
def test_a_broken_library_is_one_warning_and_the_reference(package: Path, content: bytes):
    (package / "ds_stage2ab" / "_C.abi3.so").write_bytes(content)
    lines, errors = use(package)
    assert lines[0].startswith("reference (the compiled library is unfit: ")
    assert lines[1:] == ANSWERS
    assert errors.count("RuntimeWarning") == 1
    assert "_C.abi3.so is unfit" in errors


def test_a_library_without_the_ops_is_one_warning_and_the_reference(package: Path):
    """Any other library that loads: here, one of torch's own."""
    other = next(Path(torch.__file__).parent.glob("lib/libc10.*"))
    shutil.copy(other, package / "ds_stage2ab" / "_C.abi3.so")
    lines, errors = use(package)
    assert NAMES[0] in lines[0] and lines[0].startswith("reference (the compiled library is unfit: ")
    assert lines[1:] == ANSWERS
    assert errors.count("RuntimeWarning") == 1


def test_the_self_test_takes_the_reference():
    assert self_test(reference) == ""


@pytest.mark.parametrize("name", NAMES)
def test_the_self_test_finds_another_answer(name: str):
    def another(*words: object) -> torch.Tensor | tuple[torch.Tensor, ...]:
        answer = getattr(reference, name)(*words)
        return answer + 1 if isinstance(answer, torch.Tensor) else (*answer[:-1], answer[-1] + 1)

    good = {key: getattr(reference, key) for key in NAMES}
    assert self_test(SimpleNamespace(**{**good, name: another})) == f"{name} does not answer as the reference does"
    assert self_test(SimpleNamespace(**{key: value for key, value in good.items() if key != name})).startswith(name)

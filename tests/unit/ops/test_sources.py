"""The CUDA sources are compiled, where a compiler for them is there. Nothing here runs them."""

import shutil
import subprocess
from pathlib import Path

import pytest

from ds_stage2ab.ops.binding import HOST_NAMES, NAMES
from tests.parts import ROOT

CSRC = ROOT / "csrc"
NVCC = shutil.which("nvcc")
ONLY_WITH_TORCH = {"registration.cpp", "cuda/registration.cpp", "inputs.h"}


def test_every_kernel_is_there_for_its_devices():
    assert {path.stem for path in CSRC.glob("cpu/*.cpp")} == set(NAMES)
    assert {path.stem for path in CSRC.glob("cuda/*.cu")} == set(NAMES) - set(HOST_NAMES)


def test_kernels_include_no_torch():
    files = [path for path in CSRC.rglob("*") if path.suffix in {".cpp", ".cu", ".h"}]
    found = {
        path.relative_to(CSRC).as_posix()
        for path in files
        if any(f"#include <{part}/" in path.read_text(encoding="utf-8") for part in ("torch", "ATen", "c10"))
    }
    assert found == ONLY_WITH_TORCH


if NVCC:  # decided at collection: without nvcc the test is not there, and nothing skips

    @pytest.mark.parametrize("source", sorted(CSRC.glob("cuda/*.cu")), ids=lambda path: path.name)
    def test_a_cuda_file_compiles(source: Path, tmp_path: Path):
        command = [NVCC, "-std=c++20", "-arch=sm_90", "-c", str(source), "-o", str(tmp_path / "object.o")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr

"""What stands in `csrc/`."""

from ds_stage2ab.ops.binding import NAMES
from tests.parts import ROOT

CSRC = ROOT / "csrc"
ONLY_WITH_TORCH = {"registration.cpp"}


def test_every_kernel_is_there():
    assert {path.stem for path in CSRC.glob("cpu/*.cpp")} == set(NAMES)


def test_kernels_include_no_torch():
    files = [path for path in CSRC.rglob("*") if path.suffix in {".cpp", ".h"}]
    found = {
        path.relative_to(CSRC).as_posix()
        for path in files
        if any(f"#include <{part}/" in path.read_text(encoding="utf-8") for part in ("torch", "ATen", "c10"))
    }
    assert found == ONLY_WITH_TORCH

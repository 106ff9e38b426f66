"""Maps `schemas/`, which stands beside the package, into it, and compiles `csrc/` where that can be done.

Everything else is in pyproject.toml. Without torch (pip's isolated builds), without a compiler, or with
DS_STAGE2AB_NO_EXT=1, the package installs without the compiled ops and says why; it then runs their reference.
"""

import importlib.util
import os
import shlex
import shutil
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

SCHEMAS = "ds_stage2ab.schemas"
CSRC = Path("csrc")


class BuildAnew(build_ext):
    """What an earlier build left must not pass for the result of one that fails."""

    def build_extension(self, ext: Extension) -> None:
        Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
        super().build_extension(ext)


def extensions() -> list[Extension]:
    """The compiled ops, or nothing and one line that says why."""
    reason = reason_against()
    if reason:
        print(f"ds_stage2ab: compiled ops left out, their PyTorch reference will run: {reason}")
        return []
    from torch.utils.cpp_extension import CppExtension

    return [
        CppExtension(
            "ds_stage2ab._C",
            sources=sorted(map(str, CSRC.rglob("*.cpp"))),
            depends=sorted(map(str, CSRC.rglob("*.h"))),
            extra_compile_args=["-std=c++20", "-O3", "-g0"],
            py_limited_api=True,  # no line of it uses Python: one file for every version
            optional=True,  # a compiler that fails leaves the package without it
        )
    ]


def reason_against() -> str:
    """Why nothing is compiled; empty if it is."""
    if os.environ.get("DS_STAGE2AB_NO_EXT") == "1":
        return "DS_STAGE2AB_NO_EXT=1"
    if importlib.util.find_spec("torch") is None:
        return "the build sees no torch (make install builds without isolation)"
    compiler = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")[0]
    if shutil.which(compiler) is None:
        return f"no C++ compiler ({compiler} is not on PATH)"
    return ""


setup(
    packages=[*find_packages(include=["ds_stage2ab", "ds_stage2ab.*"]), SCHEMAS],
    package_dir={SCHEMAS: "schemas"},
    package_data={SCHEMAS: ["*.json"]},
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildAnew},
)

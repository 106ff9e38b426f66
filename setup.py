"""Maps `schemas/`, which stands beside the package, into it, and compiles `csrc/` where that can be done.

Everything else is in pyproject.toml. Without torch (pip's isolated builds), without a compiler, or with
DS_STAGE2AB_NO_EXT=1, the package installs without the compiled ops and says why; it then runs their reference.
"""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

SCHEMAS = "ds_stage2ab.schemas"
CSRC = Path("csrc")
FLAGS = ["-std=c++20", "-O2"]


class BuildWithCuda(build_ext):
    """C++ as ever; each .cu by nvcc first, into an object that is linked with the rest."""

    def build_extension(self, ext: Extension) -> None:
        # What an earlier build left must not pass for the result of one that fails.
        Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
        kernels = [source for source in ext.sources if source.endswith(".cu")]
        ext.depends += kernels
        ext.sources = [source for source in ext.sources if source not in kernels]
        ext.extra_objects += [self._object_of(kernel) for kernel in kernels]
        super().build_extension(ext)

    def _object_of(self, kernel: str) -> str:
        target = Path(self.build_temp, kernel).with_suffix(".cu.o")
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [str(_nvcc()), *FLAGS, "-arch=all-major", "-Xcompiler", "-fPIC", "-c", kernel, "-o", str(target)]
        if subprocess.run(command, check=False).returncode != 0:
            raise CompileError(f"nvcc could not compile {kernel}")
        return str(target)


def extensions() -> list[Extension]:
    """The compiled ops, or nothing and one line that says why."""
    reason = reason_against()
    if reason:
        print(f"ds_stage2ab: compiled ops left out, their PyTorch reference will run: {reason}")
        return []
    from torch.utils import cpp_extension

    device = "cuda" if _nvcc() else "cpu"
    sources = [CSRC / "registration.cpp", *CSRC.glob("cpu/*.cpp")]
    libraries = ["c10", "torch_cpu"]
    if device == "cuda":
        sources += [*CSRC.glob("cuda/*.cpp"), *CSRC.glob("cuda/*.cu")]
        libraries += ["c10_cuda", "torch_cuda", "cudart"]
    return [
        Extension(
            "ds_stage2ab._C",
            sources=sorted(map(str, sources)),
            depends=sorted(map(str, CSRC.rglob("*.h"))),
            include_dirs=cpp_extension.include_paths(device),
            library_dirs=cpp_extension.library_paths(device),
            libraries=libraries,
            extra_compile_args=[*FLAGS, "-g0"],
            language="c++",
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


def _nvcc() -> Path | None:
    """The CUDA compiler, where torch is a CUDA build too."""
    from torch.utils import cpp_extension
    from torch.version import cuda

    if cuda is None or cpp_extension.CUDA_HOME is None:
        return None
    nvcc = Path(cpp_extension.CUDA_HOME, "bin", "nvcc")
    return nvcc if nvcc.is_file() else None


setup(
    packages=[*find_packages(include=["ds_stage2ab", "ds_stage2ab.*"]), SCHEMAS],
    package_dir={SCHEMAS: "schemas"},
    package_data={SCHEMAS: ["*.json"]},
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildWithCuda},
)

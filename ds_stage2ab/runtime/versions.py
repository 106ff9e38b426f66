"""Versions of this package and of the libraries that decide numbers."""

from importlib.metadata import version

PACKAGE = "ds_stage2ab"
LIBRARIES = ("torch", "transformers", "tokenizers", "deepspeed", "peft", "numpy", "pillow")


def library_versions() -> dict[str, str]:
    """Name -> installed version."""
    return {name: version(name) for name in (PACKAGE, *LIBRARIES)}

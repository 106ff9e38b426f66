"""Maps `schemas/`, which stands beside the package, into it; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

SCHEMAS = "ds_stage2ab.schemas"

setup(
    packages=[*find_packages(include=["ds_stage2ab", "ds_stage2ab.*"]), SCHEMAS],
    package_dir={SCHEMAS: "schemas"},
    package_data={SCHEMAS: ["*.json"]},
)

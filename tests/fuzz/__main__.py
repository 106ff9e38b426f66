"""Fuzz the parser, guided by coverage of its Python: python -m tests.fuzz FOLDER -max_total_time=600."""

import sys

import atheris

with atheris.instrument_imports(include=["ds_stage2ab.ops.scan", "ds_stage2ab.ops.json_value", "ds_stage2ab.matching"]):
    from tests.fuzz.parser import one_input

atheris.Setup(sys.argv, one_input)
atheris.Fuzz()

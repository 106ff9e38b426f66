"""Which code runs the ops: the library built from `csrc/`, or the reference.

The library is taken when it is there, loads, and answers like the reference on a small example. Otherwise the reference
is called as it is; a library that is there and unfit is warned about, once.
"""

import os
import warnings
from dataclasses import dataclass
from importlib.machinery import PathFinder
from typing import Any

import torch

import ds_stage2ab
from ds_stage2ab.ops import reference

LIBRARY = "ds_stage2ab._C"
NAMES = ("scan_rollout", "scan_lines", "sample_tokens", "attend_slots")
OFF = "DS_STAGE2AB_NO_EXT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The ops as found at start."""

    ops: Any
    # has every name of NAMES as a function
    implementation: str
    # "compiled", or "reference (reason)"


def bind() -> Bound:
    """Load the compiled ops, or say why the reference is used. To be called once in a process."""
    if os.environ.get(OFF) == "1":
        return _reference(f"{OFF}=1")
    # in this package's folder alone: an editable install of another checkout offers its own library too
    found = PathFinder.find_spec(LIBRARY, ds_stage2ab.__path__)
    if found is None:
        return _reference("no compiled library; with a C++ compiler on PATH, `make -B install` builds it")
    ops = torch.ops.ds_stage2ab
    fault = _load(found.origin) or self_test(ops)
    if fault:
        warnings.warn(f"{found.origin} is unfit, the PyTorch reference is used: {fault}", RuntimeWarning, stacklevel=2)
        return _reference(f"the compiled library is unfit: {fault}")
    return Bound(ops=ops, implementation="compiled")


def self_test(ops: Any) -> str:
    """What is wrong with `ops`, tried on a small example of each; empty if they answer as the reference."""
    numbers = torch.tensor([5, 6, 7, 8, 9])
    arguments = {
        "scan_rollout": (*_scan_example(), "[", "]", "", False),
        "scan_lines": (*_scan_example(), 4),
        "sample_tokens": (numbers[None].float(), 1.0, 4, 0.9, numbers[:1], numbers[1:2]),
        "attend_slots": _slots_example(),
    }
    for name in NAMES:
        expected = _flat(getattr(reference, name)(*arguments[name]))
        try:
            answer = _flat(getattr(ops, name)(*arguments[name]))
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            return f"{name}: {_first_line(error)}"
        if len(answer) != len(expected) or not all(map(torch.equal, answer, expected)):
            return f"{name} does not answer as the reference does"
    return ""


def _scan_example() -> tuple[Any, ...]:
    """`[{"a": <coordinate 7>},1` and a token that is none, in tokens of one byte and of several."""
    pieces = [b"[", b'{"a": ', b"<|coord_7|>", b"}", b",1", b""]
    offsets = torch.tensor([0, *map(len, pieces)]).cumsum(0)
    table = torch.tensor(list(b"".join(pieces)), dtype=torch.uint8)
    kinds = torch.tensor([-1, -1, 7, -1, -1, -2])
    return torch.arange(6), table, offsets, kinds


def _slots_example() -> tuple[Any, ...]:
    """Two queries, each of which has one key that outweighs the others wholly: no rounding."""
    keys = torch.tensor([[[0.0, 1.0]], [[200.0, 0.0]], [[0.0, 200.0]]])
    values, first, lengths = torch.arange(6.0).reshape(3, 1, 2), torch.tensor([0, 1]), torch.tensor([2, 2])
    return torch.eye(2)[:, None], keys, values, first, lengths, 1.0


def _load(path: str) -> str:
    """What is wrong with the file; empty if it is loaded."""
    try:
        torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:
        return _first_line(error)
    return ""


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _flat(result: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def _reference(reason: str) -> Bound:
    return Bound(ops=reference, implementation=f"reference ({reason})")

"""What holds of every compiled op: that it is there, its schema, and that strides do not matter."""

import pytest
import torch

from ds_stage2ab import ops
from ds_stage2ab.ops import reference
from ds_stage2ab.ops.binding import NAMES
from tests.unit.ops.cases import table_of

EXAMPLES = {
    "scan_rollout": (torch.tensor([0, 1, 2]), *table_of(b"[1", b"2,", b"3]"), "[", "]", "", False),
    "scan_lines": (torch.tensor([0, 1, 2]), *table_of(b"a", b"<|coord_7|>", b"\n", kinds=[-1, 7, -1]), 4),
    "sample_tokens": (torch.tensor([[1.0, 2.0, 3.0]]), 0.5, 2, 0.9, torch.tensor([7]), torch.tensor([0])),
    # of one line each: no rounding
    "attend_slots": (
        *(torch.arange(4.0 * heads).reshape(2, heads, 2) for heads in (4, 2, 2)),
        torch.tensor([1, 0]),
        torch.tensor([1, 1]),
        0.5,
    ),
}


def spread_out(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, each with another one behind it."""
    return torch.stack([tensor, tensor + 1], dim=-1)[..., 0]


def same(answer: torch.Tensor | tuple, expected: torch.Tensor | tuple) -> bool:
    """Equal in values, shape and dtype."""
    if isinstance(answer, torch.Tensor):
        return answer.dtype == expected.dtype and torch.equal(answer, expected)
    return len(answer) == len(expected) and all(map(same, answer, expected))


def test_the_ops_are_compiled_where_they_should_be():
    """Not a matter of taste: without this, a build that failed would leave every other test green."""
    assert ops.implementation() == "compiled"


@pytest.mark.parametrize("name", NAMES)
def test_strides_do_not_matter(name: str):
    spread = [spread_out(word) if isinstance(word, torch.Tensor) else word for word in EXAMPLES[name]]
    op = getattr(torch.ops.ds_stage2ab, name)
    assert same(op(*spread), op(*EXAMPLES[name]))
    assert same(op(*spread), getattr(reference, name)(*spread))


@pytest.mark.parametrize("name", NAMES)
def test_no_op_writes_into_its_arguments(name: str):
    """Nor gives one back, which its schema does not say."""
    torch.library.opcheck(getattr(torch.ops.ds_stage2ab, name).default, EXAMPLES[name], test_utils="test_schema")


@pytest.mark.parametrize("name", NAMES)
def test_the_schema_is_that_of_the_reference(name: str):
    schema = str(getattr(torch.ops.ds_stage2ab, name).default._schema)
    expected = torch.library.infer_schema(getattr(reference, name), mutates_args=())
    assert schema == f"ds_stage2ab::{name}{expected}"

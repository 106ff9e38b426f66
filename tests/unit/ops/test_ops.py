"""The public functions, which are the compiled ones here: against the reference, by hand, and when refused."""

import pytest
import torch
from hypothesis import given

from ds_stage2ab import ops
from ds_stage2ab.ops import reference
from ds_stage2ab.ops.binding import NAMES
from tests.unit.ops.cases import GENERATED, RAGGED, Ragged, table_of

# Prompts [5, 6], [] and [7, 8, 9] back to back.
TOKENS, OFFSETS, ORDER = torch.tensor([5, 6, 7, 8, 9]), torch.tensor([0, 2, 2, 5]), torch.tensor([2, 0, 1])
POSITIONS = torch.stack([TOKENS, TOKENS * 10, TOKENS * 100])
EXAMPLES = {
    "pack_left": (TOKENS, OFFSETS, ORDER, 1, 4),
    "pack_left_positions": (POSITIONS, OFFSETS, ORDER, 4),
    "trim_responses": (torch.tensor([[5, 1, 6], [1, 5, 6], [5, 6, 7]]), 1),
    "scan_rollout": (torch.tensor([0, 1, 2]), *table_of(b"[1", b"2,", b"3]"), "[", "]", "", False),
    "scan_lines": (torch.tensor([0, 1, 2]), *table_of(b"a", b"<|coord_7|>", b"\n", kinds=[-1, 7, -1])),
    "philox": (torch.tensor([[1, 2, 3, 4]]), torch.tensor([[5, 6]])),
    "sample_tokens": (torch.tensor([[1.0, 2.0, 3.0]]), 0.5, 2, 0.9, torch.tensor([7]), torch.tensor([0])),
}


def longs(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def same(answer: torch.Tensor | tuple, expected: torch.Tensor | tuple) -> bool:
    """Equal in values, shape and dtype."""
    if isinstance(answer, torch.Tensor):
        return answer.dtype == expected.dtype and torch.equal(answer, expected)
    return len(answer) == len(expected) and all(map(same, answer, expected))


def test_the_ops_are_compiled_where_they_should_be():
    """Not a matter of taste: without this, a build that failed would leave every other test green."""
    assert ops.implementation() == "compiled"


# --- by hand ----------------------------------------------------------------------------------------------------


def test_prompts_are_right_aligned():
    # rows are prompts 2, 0, 1 of lengths 3, 2, 0: paddings 4 - 3 = 1, 4 - 2 = 2, 4 - 0 = 4
    ids, mask = ops.pack_left(TOKENS, OFFSETS, ORDER, 1, 4)
    assert ids.tolist() == [[1, 7, 8, 9], [1, 1, 5, 6], [1, 1, 1, 1]]
    assert mask.tolist() == [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]


def test_positions_are_right_aligned_on_each_axis():
    packed = ops.pack_left_positions(POSITIONS, OFFSETS, ORDER[:2], 3)
    assert packed.tolist() == [
        [[7, 8, 9], [0, 5, 6]],
        [[70, 80, 90], [0, 50, 60]],
        [[700, 800, 900], [0, 500, 600]],
    ]


def test_responses_end_before_their_stop():
    # stops (1) at place 2, place 0, nowhere and, of two, the first at place 1: 2 + 0 + 4 + 1 = 7 tokens remain
    generated = torch.tensor([[5, 6, 1, 7], [1, 5, 6, 7], [5, 6, 7, 8], [9, 1, 5, 1]])
    tokens, lengths, stopped = ops.trim_responses(generated, 1)
    assert tokens.tolist() == [5, 6, 5, 6, 7, 8, 9]
    assert lengths.tolist() == [2, 0, 4, 1]
    assert stopped.tolist() == [True, True, False, True]


def test_a_stop_in_the_last_place_is_a_stop():
    tokens, lengths, stopped = ops.trim_responses(torch.tensor([[5, 6, 1]]), 1)
    assert (tokens.tolist(), lengths.tolist(), stopped.tolist()) == ([5, 6], [2], [True])


def test_one_token():
    ids, mask = ops.pack_left(longs(5), longs(0, 1), longs(0), 1, 1)
    assert (ids.tolist(), mask.tolist()) == ([[5]], [[1]])
    assert ops.pack_left_positions(longs(7)[None], longs(0, 1), longs(0, 0), 1).tolist() == [[[7], [7]]]
    assert [part.tolist() for part in ops.trim_responses(longs(1)[None], 1)] == [[], [0], [True]]


def test_nothing():
    ids, mask = ops.pack_left(longs(), longs(0), longs(), 1, 3)
    assert ids.shape == mask.shape == (0, 3)
    assert ops.pack_left(longs(), longs(0, 0), longs(0), 1, 2)[0].tolist() == [[1, 1]]
    assert ops.pack_left_positions(longs().reshape(3, 0), longs(0, 0), longs(0), 0).shape == (3, 1, 0)
    assert [part.tolist() for part in ops.trim_responses(longs().reshape(2, 0), 1)] == [[], [0, 0], [False, False]]
    assert [len(part) for part in ops.trim_responses(longs().reshape(0, 4), 1)] == [0, 0, 0]


# --- against the reference --------------------------------------------------------------------------------------


@given(RAGGED)
def test_pack_left_is_the_reference(case: Ragged):
    arguments = (case.tokens, case.offsets, case.order, -7, case.width)
    assert same(ops.pack_left(*arguments), reference.pack_left(*arguments))


@pytest.mark.parametrize("num_axes", [3, 4])
@given(case=RAGGED)
def test_pack_left_positions_is_the_reference(case: Ragged, num_axes: int):
    arguments = (case.positions(num_axes), case.offsets, case.order, case.width)
    assert same(ops.pack_left_positions(*arguments), reference.pack_left_positions(*arguments))


@given(GENERATED)
def test_trim_responses_is_the_reference(case: tuple[torch.Tensor, int]):
    assert same(ops.trim_responses(*case), reference.trim_responses(*case))


def test_strides_do_not_matter():
    spread = torch.stack([TOKENS, -TOKENS], dim=1)[:, 0]
    backwards = POSITIONS.T.contiguous().T
    assert not spread.is_contiguous() and not backwards.is_contiguous()
    assert same(ops.pack_left(spread, OFFSETS, ORDER, 1, 4), ops.pack_left(*EXAMPLES["pack_left"]))
    packed = ops.pack_left_positions(backwards, OFFSETS, ORDER, 4)
    assert same(packed, ops.pack_left_positions(*EXAMPLES["pack_left_positions"]))
    # a prompt's columns cut off, as after `generate`
    whole = torch.tensor([[0, 0, 5, 1, 6], [0, 0, 5, 6, 7]])
    assert same(ops.trim_responses(whole[:, 2:], 1), (longs(5, 5, 6, 7), longs(1, 3), torch.tensor([True, False])))


# --- refused ----------------------------------------------------------------------------------------------------

REFUSED = {
    "prompt 2 has 3 tokens, more than width 2": (TOKENS, OFFSETS, ORDER, 2),
    "order names prompt 3, but there are 3": (TOKENS, OFFSETS, longs(0, 3), 4),
    "order names prompt -1, but there are 3": (TOKENS, OFFSETS, longs(-1), 4),
    "order names prompt 0, but there are 0": (longs(), longs(0), longs(0), 4),
    "width must not be negative, not -1": (TOKENS, OFFSETS, longs(), -1),
    "offsets must be int64 with 1 axes, not int32 with 1": (TOKENS, OFFSETS.int(), ORDER, 4),
    "order must be int64 with 1 axes, not int64 with 2": (TOKENS, OFFSETS, ORDER[None], 4),
}
BAD_OFFSETS = {
    "descending": longs(0, 3, 2, 5),
    "late": longs(1, 2, 5),
    "short": longs(0, 2, 4),
    "long": longs(0, 2, 6),
    "absent": longs(),
}


def check_refused(sentence: str, tokens: torch.Tensor, offsets: torch.Tensor, order: torch.Tensor, width: int):
    """Both packings, compiled and reference, say the same."""
    for code in (ops, reference):
        with pytest.raises(ValueError, match=sentence):
            code.pack_left(tokens, offsets, order, 1, width)
        with pytest.raises(ValueError, match=sentence):
            code.pack_left_positions(tokens[None], offsets, order, width)


@pytest.mark.parametrize("sentence", REFUSED)
def test_a_wrong_argument_is_refused(sentence: str):
    check_refused(sentence, *REFUSED[sentence])


@pytest.mark.parametrize("name", BAD_OFFSETS)
def test_wrong_offsets_are_refused(name: str):
    check_refused("offsets must ascend from 0 to 5, the number of tokens", TOKENS, BAD_OFFSETS[name], longs(), 4)


@pytest.mark.parametrize("code", [ops, reference], ids=["ops", "reference"])
def test_a_wrong_first_tensor_is_refused(code):
    with pytest.raises(ValueError, match="tokens must be int64 with 1 axes, not float32 with 1"):
        code.pack_left(TOKENS.float(), OFFSETS, ORDER, 1, 4)
    with pytest.raises(ValueError, match="positions must be int64 with 2 axes, not int64 with 1"):
        code.pack_left_positions(TOKENS, OFFSETS, ORDER, 4)
    with pytest.raises(ValueError, match="generated must be int64 with 2 axes, not int64 with 3"):
        code.trim_responses(TOKENS[None, None], 1)


# --- as torch sees them -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_no_op_writes_into_its_arguments(name: str):
    """Nor gives one back, which its schema does not say."""
    torch.library.opcheck(getattr(torch.ops.ds_stage2ab, name).default, EXAMPLES[name], test_utils="test_schema")


@pytest.mark.parametrize("name", NAMES)
def test_the_schema_is_that_of_the_reference(name: str):
    schema = str(getattr(torch.ops.ds_stage2ab, name).default._schema)
    expected = torch.library.infer_schema(getattr(reference, name), mutates_args=())
    assert schema == f"ds_stage2ab::{name}{expected}"

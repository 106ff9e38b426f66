"""One function for each line of the module's list of invariants."""

import pytest
import torch
from hypothesis import given

from ds_stage2ab.ops import reference
from tests.unit.ops.cases import GENERATED, RAGGED, Ragged

PAD = -7


@given(RAGGED)
def test_a_row_is_padding_and_then_its_prompt(case: Ragged):
    ids, mask = reference.pack_left(case.tokens, case.offsets, case.order, PAD, case.width)
    assert ids.shape == mask.shape == (len(case.order), case.width)
    for row, row_mask, prompt in zip(ids.tolist(), mask.tolist(), case.order.tolist(), strict=True):
        num_padding = case.width - len(case.prompts[prompt])
        assert row == [PAD] * num_padding + case.prompts[prompt]
        assert row_mask == [0] * num_padding + [1] * len(case.prompts[prompt])


@pytest.mark.parametrize("num_axes", [3, 4])
@given(case=RAGGED)
def test_positions_are_packed_as_ids_are(case: Ragged, num_axes: int):
    positions = case.positions(num_axes)
    packed = reference.pack_left_positions(positions, case.offsets, case.order, case.width)
    each = [reference.pack_left(axis, case.offsets, case.order, 0, case.width)[0] for axis in positions]
    assert torch.equal(packed, torch.stack(each))


@given(GENERATED)
def test_a_response_is_what_stands_before_its_stop(case: tuple[torch.Tensor, int]):
    generated, stop_id = case
    rows = generated.tolist()
    expected = [row[: row.index(stop_id)] if stop_id in row else row for row in rows]
    tokens, lengths, stopped = reference.trim_responses(generated, stop_id)
    assert tokens.tolist() == [token for row in expected for token in row]
    assert lengths.tolist() == [len(row) for row in expected]
    assert stopped.tolist() == [stop_id in row for row in rows]


def test_what_does_not_fit_together_is_refused():
    tokens, offsets, order = torch.tensor([5, 6, 7]), torch.tensor([0, 1, 3]), torch.tensor([1, 0])
    with pytest.raises(ValueError, match="prompt 1 has 2 tokens, more than width 1"):
        reference.pack_left(tokens, offsets, order, PAD, 1)
    with pytest.raises(ValueError, match="order names prompt 2, but there are 2"):
        reference.pack_left(tokens, offsets, torch.tensor([0, 2]), PAD, 4)

"""Cross entropy and the mass of coordinates in blocks of rows: bit by bit those of all rows at once."""

import pytest
import torch
import torch.nn.functional as F

from ds_stage2ab.losses import row_blocks
from ds_stage2ab.losses.coordinates import slot_distribution
from ds_stage2ab.losses.text import token_cross_entropy

ROWS, IDS = 4, 1009  # of a block; the vocabulary
SIZES = [0, 1, ROWS - 1, ROWS, ROWS + 1, 2 * ROWS, 3 * ROWS + 1]
TYPES = [torch.float32, torch.bfloat16, torch.float64]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(row_blocks, "BLOCK_VALUES", ROWS * IDS + 5)


def given(rows, dtype):
    torch.manual_seed(rows)
    logits = (4 * torch.randn(rows, IDS)).to(dtype).requires_grad_()
    return logits, torch.randint(0, IDS, (rows,)), torch.randn(rows)


def at_once(logits):
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_cross_entropy_and_its_gradient_are_those_of_all_rows_at_once(rows, dtype):
    logits, targets, weights = given(rows, dtype)
    ours, plain = token_cross_entropy(logits, targets), F.cross_entropy(at_once(logits), targets, reduction="none")
    assert ours.dtype == plain.dtype and torch.equal(ours, plain)
    gradients = [torch.autograd.grad((values * weights).sum(), logits)[0] for values in (ours, plain)]
    assert gradients[0].dtype == dtype and torch.equal(*gradients)
    assert rows == 0 or gradients[0].any(dim=1).all()


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_so_is_the_distribution_at_coordinate_slots(rows, dtype):
    logits, _, weights = given(rows, dtype)
    ids = torch.arange(5, 1005)
    ours = slot_distribution(logits, ids)
    wide = at_once(logits)
    inside = wide.index_select(-1, ids)
    mass = (torch.logsumexp(inside, dim=-1) - torch.logsumexp(wide, dim=-1)).clamp(max=0)
    assert torch.equal(ours.log_mass_M, mass)
    assert torch.equal(ours.log_p_MK, F.log_softmax(inside, dim=-1))
    sums = [ours.log_mass_M @ weights.to(mass.dtype), mass @ weights.to(mass.dtype)]
    gradients = [torch.autograd.grad(value, logits)[0] for value in sums]
    assert torch.equal(*gradients)


def test_nothing_of_the_logits_size_is_kept_but_the_logits():
    """In bf16: of fp32 there is one number for each row."""
    logits, targets, _ = given(3 * ROWS, torch.bfloat16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        token_cross_entropy(logits, targets)
    large = [tensor for tensor in kept if tensor.numel() >= logits.numel()]
    assert [tensor.data_ptr() for tensor in large] == [logits.data_ptr()]


def test_no_block_is_larger_than_it_may_be(monkeypatch):
    """Nor is one empty of rows, however wide a row is."""
    seen = []
    for rows, values in ((11, 3 * IDS), (3, IDS - 1), (0, IDS)):
        monkeypatch.setattr(row_blocks, "BLOCK_VALUES", values)
        row_blocks.by_row_blocks(lambda block: (seen.append(len(block)) or block.sum(-1),), torch.zeros(rows, IDS))
    assert seen == [3, 3, 3, 2, 1, 1, 1, 0]

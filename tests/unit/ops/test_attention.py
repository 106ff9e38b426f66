"""Attention over slots: by hand, against the reference, and as exact as its precision allows."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ds_stage2ab import ops
from ds_stage2ab.ops import reference

CODES = pytest.mark.parametrize("code", [ops, reference], ids=["ops", "reference"])


def inputs(lengths, *, heads=2, groups=3, width=16, lines=40, seed=0):
    """Queries of these lengths, each of which begins somewhere."""
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(len(lengths), heads * groups, width, generator=generator)
    keys, values = torch.randn(2, lines, heads, width, generator=generator)
    first = [int(torch.randint(lines - length + 1, (), generator=generator)) for length in lengths]
    return queries, keys, values, torch.tensor(first, dtype=torch.long), torch.tensor(lengths, dtype=torch.long)


@CODES
def test_by_hand(code):
    # one key head for two query heads; lines 1 and 2 are seen, with products 0 and log 3 for the first query head and
    # 0 and 0 for the second: weights 1/4, 3/4 and 1/2, 1/2
    keys = torch.tensor([[[9.0, 9.0]], [[0.0, 0.0]], [[1.0, 0.0]], [[9.0, 9.0]]])
    values = torch.tensor([[[99.0, 99.0]], [[4.0, 0.0]], [[8.0, 4.0]], [[99.0, 99.0]]])
    queries = torch.tensor([[[2 * math.log(3), 5.0], [0.0, 1.0]]])
    out = code.attend_slots(queries, keys, values, torch.tensor([1]), torch.tensor([2]), 0.5)
    # 4/4 + 3 * 8/4 = 7, 3 * 4/4 = 3; (4 + 8)/2 = 6, 4/2 = 2
    torch.testing.assert_close(out, torch.tensor([[[7.0, 3.0], [6.0, 2.0]]]))


@given(
    st.lists(st.integers(1, 30), max_size=5),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([1, 7, 16, 33, 64]),
    st.integers(0, 9),
)
def test_it_is_the_reference(lengths, heads, groups, width, seed):
    given_ = (*inputs(lengths, heads=heads, groups=groups, width=width, seed=seed), width**-0.5)
    torch.testing.assert_close(ops.attend_slots(*given_), reference.attend_slots(*given_), rtol=1e-5, atol=1e-6)


def test_its_rounding_is_that_of_the_reference():
    """At most twice as far from fp64 as the same mathematics in torch; with scores of some tens, as models have."""
    queries, keys, values, first, lengths = inputs([1, 30, 300, 900], lines=1000, width=64)
    single = (8 * queries, keys, values, first, lengths, 0.125)
    exact = []
    for query, begin, length in zip(8 * queries.double(), first, lengths, strict=True):
        seen = slice(begin, begin + length)
        key, value = (tensor[seen].double().repeat_interleave(3, 1) for tensor in (keys, values))
        weights = torch.softmax(torch.einsum("ad,cad->ac", query, key) * 0.125, -1)
        exact.append(torch.einsum("ac,cad->ad", weights, value))
    errors = [(code.attend_slots(*single) - torch.stack(exact)).abs().max() for code in (ops, reference)]
    assert errors[0] <= 2 * errors[1]


@CODES
def test_what_is_not_seen_does_not_matter(code):
    """Not even where it is no number."""
    queries, keys, values, first, lengths = inputs([3, 5])
    seen = torch.zeros(len(keys), dtype=torch.bool)
    for begin, length in zip(first, lengths, strict=True):
        seen[begin : begin + length] = True
    expected = code.attend_slots(queries, keys, values, first, lengths, 1.0)
    noise = (~seen)[:, None, None]
    keys, values = keys.masked_fill(noise, torch.nan), values.masked_fill(noise, torch.nan)
    assert torch.equal(code.attend_slots(queries, keys, values, first, lengths, 1.0), expected)


@CODES
def test_a_number_that_is_none_is_passed_on(code):
    queries, keys, values, first, lengths = inputs([3, 5])
    keys[first[0] + 1, 0, 0] = torch.nan
    found = code.attend_slots(queries, keys, values, first, lengths, 1.0)
    assert found[0, :3].isnan().all() and found[0, 3:].isfinite().all()


@CODES
def test_what_does_not_fit_is_refused(code):
    queries, keys, values, first, lengths = inputs([3, 5])
    ints = "must be int64, one for each query"
    heads = "must be float32 with 3 axes, the second of at least one head"
    lines = "each query must see a line at least, and lines that are there"
    alike = "keys and values must be alike, as wide as the queries, with a head for so many query heads each"
    for place, wrong, sentence in [
        (0, queries.double(), f"queries {heads}"),
        (1, keys[0], f"keys {heads}"),
        (2, values[:, :0], f"values {heads}"),
        (2, values[1:], alike),
        (0, queries[..., 1:], alike),
        (0, queries[:, :5], alike),
        (3, first[:1], f"first {ints}"),
        (4, lengths.int(), f"lengths {ints}"),
        (3, first - 40, lines),
        (3, torch.tensor([0, 36]), lines),
        (3, torch.tensor([0, 2**63 - 1]), lines),
        (4, lengths * 0, lines),
        (4, torch.tensor([1, 2**63 - 1]), lines),
    ]:
        arguments = [queries, keys, values, first, lengths, 1.0]
        arguments[place] = wrong
        with pytest.raises(ValueError) as caught:
            code.attend_slots(*arguments)
        assert str(caught.value).splitlines()[0] == sentence

"""Each row as far as it reaches, or all as far as the longest: the same attention, which is that of each row alone."""

from types import SimpleNamespace

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from ds_stage2ab.rollout.decoding.attention import SlotMemory, attend_by_slot
from ds_stage2ab.rollout.decoding.loop import started
from ds_stage2ab.rollout.decoding.passes import make_pass
from ds_stage2ab.rollout.decoding.rows import Request
from tests.bench.decoding import text_sample

KEYS, GROUPS, WIDTH, COLUMNS = 2, 3, 8, 24
LAYER = SimpleNamespace(layer_idx=0, training=False, num_key_value_groups=GROUPS)


def row(place, prompt, answer=0, draft=0):
    """With the whole answer but its newest token in the slot."""
    positions, sample = torch.arange(prompt).expand(3, -1), text_sample(place, range(prompt))
    request = Request(place=place, sample=sample, seed=place, position_ids=positions)
    made = started(request, max_new_tokens=9, stop_id=-1, guard=None, drafter=None)
    made.ids, made.draft = [7] * answer, [7] * draft
    made.num_cached = prompt + answer - 1 if answer else 0
    return made


def attended(rows, dtype, seen):
    """The output [T, heads, WIDTH] of a pass over slots that hold `seen`; queries, keys and values of the pass."""
    memory = SlotMemory(len(rows), COLUMNS)
    memory.layers[0] = tuple(pad(one.to(dtype).flatten(1), (0, 0, 0, 1)) for one in seen)
    inputs = make_pass(rows, memory, device=torch.device("cpu"), dtype=dtype, heads_per_key=GROUPS)
    assert (inputs.slots.mask is None) == (dtype == torch.float32)
    generator = torch.Generator().manual_seed(1)
    given = [
        torch.randn(1, heads, len(inputs.tokens_T), WIDTH, generator=generator).to(dtype)
        for heads in (KEYS * GROUPS, KEYS, KEYS)
    ]
    return attend_by_slot(LAYER, *given, None, slots=inputs.slots, scaling=0.4)[0][0], given, memory


def test_both_are_the_attention_of_each_row_alone():
    rows = [row(0, 5, answer=3), row(1, 9), row(2, 12, answer=4, draft=3), row(3, 2, answer=1), row(4, 4)]
    seen = torch.randn(2, len(rows) * COLUMNS, KEYS, WIDTH, generator=torch.Generator().manual_seed(0))
    ragged, _, _ = attended(rows, torch.float32, seen)
    padded, (queries, _, _), memory = attended(rows, torch.float64, seen)
    torch.testing.assert_close(ragged.double(), padded, rtol=1e-5, atol=1e-6)
    # by row: those of answers first, then the prompts, each of which begins an empty slot
    begin = 0
    for slot in (0, 2, 3, 1, 4):
        fed, cached = len(rows[slot].fed()), rows[slot].num_cached
        lines = slice(slot * COLUMNS, slot * COLUMNS + cached + fed)
        key, value = (one[lines].unflatten(1, (KEYS, WIDTH)).transpose(0, 1) for one in memory.layers[0])
        query = queries[0, :, begin : begin + fed]
        mask = torch.arange(cached + fed) <= cached + torch.arange(fed)[:, None]
        alone = scaled_dot_product_attention(query, key, value, mask, scale=0.4, enable_gqa=True).transpose(0, 1)
        torch.testing.assert_close(padded[begin : begin + fed], alone)
        begin += fed
    assert begin == len(padded)


def test_answers_of_a_token_each_need_no_gathering():
    """The form that is captured on a device: a query for each slot."""
    rows = [row(0, 5, answer=3), row(1, 2, answer=1)]
    seen = torch.randn(2, len(rows) * COLUMNS, KEYS, WIDTH, generator=torch.Generator().manual_seed(0))
    padded, _, _ = attended(rows, torch.float64, seen)
    torch.testing.assert_close(attended(rows, torch.float32, seen)[0].double(), padded, rtol=1e-5, atol=1e-6)

"""A response -> its JSON values, or the boxes of its lines; scores -> the tokens that they draw; slots -> attention.

Legend: T tokens of a response, V ids of the vocabulary, M nodes of the complete values; B rows of scores; N queries, L
lines of memory, H key heads, G query heads for each, D width of a head.
Ids and offsets are int64, and all tensors on the CPU, where answers are read; but `sample_tokens` takes them anywhere,
and on a device its reference runs there.
What runs is compiled from `csrc/`, or `ds_stage2ab/ops/reference.py`, with identical results, but for the rounding of
`attend_slots`.
"""

from torch import Tensor

from ds_stage2ab.ops import reference
from ds_stage2ab.ops.binding import bind

_BOUND = bind()


def implementation() -> str:
    """Which code runs: "compiled", or "reference (the reason)"."""
    return _BOUND.implementation


def scan_rollout(
    token_ids: Tensor,
    table: Tensor,
    offsets: Tensor,
    kinds: Tensor,
    *,
    opening: str,
    closing: str,
    key_head: str,
    quoted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which JSON values of an answer are complete, and where: `ds_stage2ab/ops/scan.py` has the grammar.

    Args:
        token_ids: [T], the stop token removed; any ids are legal.
        table: uint8, the bytes that each id of the vocabulary counts for, back to back.
        offsets: [V + 1], id v counts for `table[offsets[v]:offsets[v + 1]]`.
        kinds: [V], the bin of a coordinate token, -1 of a token that is text, -2 of any other.
        opening: lexemes before the values, separated by blanks.
        closing: lexemes after them.
        key_head: what the key of each value begins with, its quote included; empty: values have no keys.
        quoted: a coordinate token stands for characters of a string, not for a value.

    Returns:
        nodes [M, 6] of the complete values, each before what is in it and a key right before its value: kind (place in
        `reference.KINDS`), first byte, byte after the last, row of the node around it or -1, of a coordinate (also as
        the only content of a string) its place among the ids and its bin, else -1 and -1; the bin's column of a value
        with a numbered key holds that number; text, uint8 [bytes]; starts [T + 1], offset of each token's first byte;
        summary [3]: offset after the opening or -1, how the scan ended (place in `reference.ENDED`), whether anything
        follows the close.

    Raises:
        ValueError: a tensor has another dtype or number of axes, or the table does not fit the offsets.
    """
    return _BOUND.ops.scan_rollout(token_ids, table, offsets, kinds, opening, closing, key_head, quoted)


def scan_lines(
    token_ids: Tensor, table: Tensor, offsets: Tensor, kinds: Tensor, num_coordinates: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which boxes of an answer in lines are complete, and where: `ds_stage2ab/ops/lines.py` has the grammar.

    Args:
        token_ids, table, offsets, kinds: as in `scan_rollout`.
        num_coordinates: of a box, its score included; at least 1.

    Returns:
        as `scan_rollout`: each value is an array of its line's description (a string) and its coordinates; "closed"
        means that the answer may end where it does.

    Raises:
        ValueError: as in `scan_rollout`.
    """
    return _BOUND.ops.scan_lines(token_ids, table, offsets, kinds, num_coordinates)


def sample_tokens(
    scores: Tensor, temperature: float, top_k: int, top_p: float, seeds: Tensor, positions: Tensor
) -> Tensor:
    """The token that each row draws: `ds_stage2ab/ops/sampling.py` has the rules.

    Args:
        scores: [B, V], fp32.
        temperature: above 0.
        top_k: 0 is off.
        top_p: 1 is off.
        seeds: [B], of each row's request, 0..2^63-1; all bits count.
        positions: [B], the place of the token in its answer, 0..2^32-1.

    Returns:
        [B].

    Raises:
        ValueError: another dtype or shape, or a number out of its range.
    """
    code = _BOUND.ops if scores.is_cpu else reference  # what is compiled is compiled for the CPU
    return code.sample_tokens(scores, temperature, top_k, top_p, seeds, positions)


def attend_slots(
    queries: Tensor, keys: Tensor, values: Tensor, first: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    """Attention of single queries, each of which sees lines of its own, and as many as it has.

    Args:
        queries: [N, H * G, D], fp32.
        keys, values: [L, H, D], fp32.
        first: [N], the first line of each query.
        lengths: [N], how many lines it sees; at least 1.
        scale: of the products.

    Returns:
        [N, H * G, D].

    Raises:
        ValueError: another dtype or shape, or lines that are not there.
    """
    return _BOUND.ops.attend_slots(queries, keys, values, first, lengths, scale)

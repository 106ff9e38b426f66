"""What the fuzzer runs: any bytes become ids of an answer, and everything that must always hold is checked.

A byte names a token of a small table: single bytes, the fragments that real tokenizers fuse, coordinates, a special
token. The first byte chooses the form and whether the opening is given.
"""

import json
from functools import cache

import torch

from ds_stage2ab import ops
from ds_stage2ab.carriers import Truth
from ds_stage2ab.codec.bins import NUM_BINS, coordinate_token
from ds_stage2ab.codec.text import CODECS, Codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.matching.append import appended_target
from ds_stage2ab.matching.assign import match_boxes
from ds_stage2ab.matching.parse import REASONS, STATES, parse_rollout
from ds_stage2ab.matching.scan import scan_arguments
from ds_stage2ab.ops import reference

COSTS = {"candidate_top_k": 10, "iou_gate": 0.3, "fp_cost": 1.0, "fn_cost": 1.0}
WEIGHTS = {"desc_ce_weight": 0.5, "drop_invalid_struct_ce_multiplier": 3.0, "where": "fuzz"}
TRUTH = (Truth(desc="cat", box=(1, 2, 300, 400)), Truth(desc='\u4e2d"', box=(0, 0, 999, 999)))
FRAGMENTS = (
    *('{"objects": [', '{"', '{"desc": "', '", "bbox_2d": [', '"object_', '"object_1": ', "]}, ", "]}]}", '"]}, '),
    *('["', '", "', '"bbox_2d"', '"desc"', '"poly"', '"point_2d"', "null", "true"),
    *("[[[[[[[", "]]]]]]]", "\u4e2d", "\\u0064"),
)
# Bytes from 200 on stand for other tokens; of the bytes that begin long characters these are left.
PLAIN_BYTES = 200
LEADS = (0xC8, 0xDF, 0xE0, 0xE1, 0xE4, 0xEC, 0xED, 0xEF, 0xF0, 0xF1, 0xF4, 0xF5, 0xFF)
BINS = (0, 1, 2, 300, 400, 999)


def _encode(text: str) -> list[int]:
    """Single bytes, and coordinates as their own ids."""
    ids: list[int] = []
    for place, part in enumerate(text.split("<|coord_")):
        if place:
            number, part = part.split("|>", 1)
            ids.append(_FIRST_COORDINATE + int(number))
        ids += part.encode()
    return ids


_FIRST_COORDINATE = 256 + len(FRAGMENTS)
_SPECIAL = _FIRST_COORDINATE + NUM_BINS


@cache
def vocabulary() -> Vocabulary:
    """Ids: 256 single bytes, the fragments, the coordinates, a stop and an image token."""
    pieces = [*(bytes([byte]) for byte in range(256)), *(text.encode() for text in FRAGMENTS)]
    coordinates = tuple(range(_FIRST_COORDINATE, _SPECIAL))
    return Vocabulary(
        token_bytes=(*pieces, *[None] * (NUM_BINS + 2)),
        byte_ids=tuple(range(256)),
        coordinate_ids=coordinates,
        coordinate_bins={token: k for k, token in enumerate(coordinates)},
        stop_id=_SPECIAL,
        image_id=_SPECIAL + 1,
        vision_ids=(_SPECIAL + 1,),
        added_texts=tuple(coordinate_token(k) for k in range(NUM_BINS)),
        encode=_encode,
        normalise=str,
    )


def ids_of(data: bytes) -> list[int]:
    """One id for each byte: what most answers hold as it is, the upper values as the other tokens."""
    others = [*range(256, _FIRST_COORDINATE), *(_FIRST_COORDINATE + k for k in BINS), _SPECIAL, *LEADS]
    return [byte if byte < PLAIN_BYTES else others[(byte - PLAIN_BYTES) % len(others)] for byte in data]


def response_of(data: bytes) -> tuple[Codec, list[int]]:
    """The form and the ids that an input, which is not empty, stands for."""
    form = "compact" if data[0] & 4 else "keyed" if data[0] & 1 else "array"
    codec = CODECS[f"{form}_scored" if data[0] & 8 and form != "keyed" else form]
    opening = _encode(codec.opening) if data[0] & 2 else []
    return codec, [*opening, *ids_of(data[1:])]


def one_input(data: bytes) -> None:
    """Check everything that holds of any response."""
    if not data:
        return
    codec, ids = response_of(data)
    arguments = scan_arguments(ids, vocabulary())
    if codec.grammar is None:
        arguments = (*arguments, codec.num_coordinates)
        compiled, plain = ops.scan_lines(*arguments), reference.scan_lines(*arguments)
    else:
        compiled = ops.scan_rollout(*arguments, **codec.grammar)
        plain = reference.scan_rollout(*arguments, *codec.grammar.values())
    assert all(map(torch.equal, compiled, plain)), "the compiled scan is not the plain one"
    parsed = parse_rollout(ids, vocabulary(), codec)
    assert parsed.state in STATES and set(parsed.dropped) <= set(REASONS)
    match = match_boxes(parsed.objects, TRUTH, **COSTS)
    target = appended_target(parsed, match, TRUTH, vocabulary(), codec, **WEIGHTS)
    taught = [*(place for _, place in match.pairs), *match.missed]
    assert target.bins.tolist() == [k for place in taught for k in TRUTH[place].box]
    assert not target.weights[target.slots].any()
    *body, stop = target.ids.tolist()
    assert stop == vocabulary().stop_id and stop not in body
    if codec.in_lines:
        assert parse_rollout(body, vocabulary(), codec).state == ("ok" if body else "empty_answer")
    else:
        json.loads(_quoted(body, codec.quote))


def _quoted(ids: list[int], quote: str) -> bytes:
    """The text, bare coordinates as numbers."""
    bins = vocabulary().coordinate_bins
    return b"".join(
        str(bins[token]).encode() if token in bins and not quote else vocabulary().written(token) for token in ids
    )

"""A tokenizer whose tokens can be read off a text, and the two answer formats in JSON as a model writes them.

The tokenizer splits text as Qwen's does, and a piece is one token if it is among the words below, single bytes
otherwise.
"""

import json
import re
from dataclasses import dataclass
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ds_stage2ab.carriers import Target, Truth
from ds_stage2ab.codec.names import SCORED
from ds_stage2ab.codec.text import CODECS, get_codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.matching.append import appended_target
from ds_stage2ab.matching.assign import match_boxes
from ds_stage2ab.matching.parse import parse_rollout
from ds_stage2ab.matching.targets import rewritten_target
from tests.parts import as_tuples
from tests.real_tokenizers import QWEN_SPLIT
from tests.rollout_cases import JSON

COSTS = {"candidate_top_k": 10, "iou_gate": 0.3, "fp_cost": 1.0, "fn_cost": 1.0}
WEIGHTS = {"desc_ce_weight": 0.5, "drop_invalid_struct_ce_multiplier": 3.0, "where": "sample"}
SPECIALS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
WORDS = (
    *("objects", "object", '"object', "desc", "bbox", "owl", "cat", "zebra", "dog", "red", " fox"),
    *('{"', ' {"', ' [{"', '":', ' "', '",', " [", "]},", "]}", '"},', ' ["', '"]},', '"]}', ' "(', ')",'),
)
CLOSERS = ("]}]}", '"]}}', " []}", "{}")  # tokens in which a prefix ends: they hold the close too
FRAGMENTS = ((' "\u4e2d', 0, 3), ('\u4e2d",', 2, 5), ('\u00e9",', 1, 4), ('e\u0301",', 0, 5))  # (text, bytes from, to)


@dataclass(frozen=True)
class Form:
    """One answer format, as a model writes it."""

    name: str
    opening: str
    closing: str
    quote: str  # around a coordinate token

    def box(self, *bins: int) -> str:
        return "[" + ", ".join(f"{self.quote}<|coord_{k}|>{self.quote}" for k in bins) + "]"

    def value(self, desc: str, box: tuple[int, ...]) -> str:
        return f'{{"desc": "{desc}", "bbox_2d": {self.box(*box)}}}'

    def answer(self, *values: str) -> str:
        keys = [f'"object_{number}": ' if self.name == "keyed" else "" for number in range(1, len(values) + 1)]
        return self.opening + ", ".join(key + value for key, value in zip(keys, values, strict=True)) + self.closing


ARRAY, KEYED = (Form("array", '{"objects": [', "]}", ""), Form("keyed", "{", "}", '"'))
FORMS = tuple(form for form in (ARRAY, KEYED) if form.name in CODECS)
assert {form.name for form in FORMS} == set(JSON) - {*SCORED}, "every codec in JSON that there is, and no fewer"


@cache
def build_vocabulary(words: tuple[str, ...]) -> Vocabulary:
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = [letters.pre_tokenize_str(word)[0][0] for word in words]
    pieces += [letters.pre_tokenize_str(text)[0][0][first:last] for text, first, last in FRAGMENTS]
    table = {piece: token for token, piece in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), *pieces])}
    backend = Tokenizer(models.BPE(vocab=table, merges=[], ignore_merges=True))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"), letters])
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    backend.add_tokens([AddedToken(f"<|coord_{k}|>", special=False, normalized=False) for k in range(1000)])
    return Vocabulary.from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))


def spell(vocabulary: Vocabulary, tokens: str) -> list[int]:
    """`{"~desc~C7` -> ids."""
    ids = []
    for token in tokens.split("~"):
        if token == "<stop>":
            ids.append(vocabulary.stop_id)
        elif re.fullmatch(r"C\d+", token):
            ids.append(vocabulary.coordinate_ids[int(token[1:])])
        else:
            ids.append(vocabulary.token_bytes.index(token.encode("latin-1")))
    return ids


def shown(vocabulary: Vocabulary, ids) -> list[str]:
    names = {vocabulary.stop_id: "<stop>"} | {token: f"C{k}" for token, k in vocabulary.coordinate_bins.items()}
    return [names[token] if token in names else vocabulary.token_bytes[token].decode("latin-1") for token in ids]


def corners(box, between: str, weight: float, bins=(None,) * 4) -> list[tuple]:
    """Rows of four coordinates, and of what stands between them."""
    rows = [((f"C{k}", 0, taught), (between, weight)) for k, taught in zip(box, bins, strict=True)]
    return [row for pair in rows for row in pair][:-1]


def truths(boxes, desc="a") -> list[Truth]:
    return [Truth(desc=desc, box=box) for box in boxes]


def document(vocabulary: Vocabulary, form: Form, target: Target) -> list:
    """The values of the target's text, objects as pairs; coordinate tokens are read as numbers."""
    *ids, stop = target.ids
    assert stop == vocabulary.stop_id and stop not in ids
    numbers = {token: str(k).encode() for token, k in vocabulary.coordinate_bins.items()}
    text = b"".join(numbers[token] if token in numbers else vocabulary.token_bytes[token] for token in ids)
    members = json.loads(text, object_pairs_hook=tuple)
    numbered = [f"object_{number}" for number in range(1, len(members) + 1)]
    assert [key for key, _ in members] == (["objects"] if form is ARRAY else numbered)
    return members[0][1] if form is ARRAY else [value for _, value in members]


def follow(vocabulary: Vocabulary, form: Form, ids: list[int], truth: list[Truth], said_order=None):
    """The path under test: match and target, appended to or (said_order) rewritten.

    The target of every rollout is one document, and teaches every true object once.
    """
    codec = get_codec(form.name)
    parsed = parse_rollout(ids, vocabulary, codec)
    match = match_boxes(parsed.objects, truth, **COSTS)
    made_of = (parsed, match, truth, vocabulary, codec)
    found = [place for _, place in match.pairs]
    assert sorted([*found, *match.missed]) == list(range(len(truth)))
    if said_order is not None:
        order = {"said_order": said_order, "keep_spurious": False}
        rewritten = rewritten_target(*made_of, **order, desc_ce_weight=0.5, where="sample")
        return match, as_tuples(rewritten)
    target = as_tuples(appended_target(*made_of, **WEIGHTS))
    assert target.bins == tuple(k for place in [*found, *match.missed] for k in truth[place].box)
    num_values = len(parsed.objects) + len(parsed.dropped)
    number = str if form.quote else int
    assert document(vocabulary, form, target)[num_values:] == [
        (("desc", truth[place].desc), ("bbox_2d", [number(k) for k in truth[place].box])) for place in match.missed
    ]
    return match, target


def check_rows(words: Vocabulary, target: Target, rows) -> None:
    wanted = [(token, weight) for tokens, weight, *_ in rows for token in tokens.split("~")]
    assert list(zip(shown(words, target.ids), target.weights, strict=True)) == wanted
    bins = [taught for tokens, _, *rest in rows for taught in (rest or [None] * len(tokens.split("~")))]
    assert list(zip(target.slots, target.bins, strict=True)) == [(t, k) for t, k in enumerate(bins) if k is not None]
    assert list(target.is_desc) == [weight == 0.5 for _, weight in wanted]

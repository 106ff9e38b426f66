"""Answers that somebody could have written: objects that lie apart, as text, in a tokenizer's tokens or in any."""

import json
import re
from dataclasses import replace
from itertools import accumulate, pairwise
from random import Random

from ds_stage2ab.carriers import Truth
from ds_stage2ab.codec.text import Codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from tests.rollout_cases import Case, Value

LIST = '{"objects": ['
OPENING = {"array": LIST, "array_scored": LIST, "keyed": "{"}
CLOSE = {"array": "]}", "array_scored": "]}", "keyed": "}"}
DESCS = (
    *("cat", "black cat!", "\u4e2d\u6587\u5b57", 'say "hi"', '"', "\\", "{", "}", "]}]}", "]},", '", "', "a  b", " x "),
    *("\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "caf\u00e9", "\ud55c\uad6d", "x\ty\n", "\u00a0y"),
    *("<|im_end|>", "<|coord_7|> <", "a<|image_pad|>", "<", "\u0301x", "\u2028-", "\x7f", "bbox_2d", "?", "0", "[{"),
)
LETTERS = ((0x20, 0x80), (0x80, 0x250), (0x300, 0x370), (0xAC00, 0xD7A4), (0xE000, 0xFFFF), (0x1F300, 0x1FAFF))


def offsets_of(ids, vocabulary: Vocabulary) -> list[int]:
    return list(accumulate((len(vocabulary.written(token)) for token in ids), initial=0))


def exactly(text: bytes, coordinates: set[int], vocabulary: Vocabulary) -> list[int] | None:
    """The ids of one encoding; None where they are another text, or coordinates where none should be."""
    ids = vocabulary.encode(text.decode(errors="replace"))
    starts = zip(offsets_of(ids, vocabulary), ids, strict=False)
    found = {first for first, token in starts if token in vocabulary.coordinate_bins}
    return ids if vocabulary.written_all(ids) == text and found == coordinates else None


def scene(random: Random, vocabulary: Vocabulary, num: int) -> list[Truth]:
    """Objects that lie apart (each matches itself, shifted a little too, and no other), named as Channel A taught."""
    objects = []
    for cell in random.sample(range(100), num):
        x, y = (99 * (cell % 10) + random.randrange(4, 20), 99 * (cell // 10) + random.randrange(4, 20))
        box = (x, y, x + random.randrange(30, 70), y + random.randrange(30, 70))
        letters = [chr(random.randrange(*random.choice(LETTERS))) for _ in range(random.randrange(1, 6))]
        desc = random.choice(DESCS) if random.random() < 0.7 else "".join(["x", *letters])
        objects.append(Truth(desc=vocabulary.normalise(desc), box=box))
    return objects


def shifted(random: Random, one: Truth) -> Truth:
    return Truth(desc=random.choice([one.desc, "another"]), box=tuple(k + random.choice([-2, -1, 1]) for k in one.box))


def write(values: list, vocabulary: Vocabulary, codec: Codec, random=None, numbers=range(1, 100)) -> Case:
    """The case of objects and (template, box, why it is dropped), `BOX` in it the box; in any tokens with `random`."""
    keyed, text, made, spans = codec.name == "keyed", OPENING[codec.name].encode(), [], []
    for place, (one, number) in enumerate(zip(values, numbers, strict=False)):
        if isinstance(one, Truth):  # as Channel A writes it: the text of an added token is escaped, so it stays text
            inside = json.dumps(vocabulary.normalise(one.desc), ensure_ascii=False)
            is_token = any(added in inside for added in vocabulary.added_texts)
            inside = inside.replace("<", "\\u003c") if is_token else inside
            one = (f'{{"desc": {inside}, "bbox_2d": BOX}}', one.box, "", one.score)
        template, box, reason, score = (*one, 500)[:4]
        if codec.scored and not reason:  # the last member, so that it is the anchor
            template = template[:-1].rstrip() + f', "score": <|coord_{score}|>}}'
        before, is_box, behind = template.partition("BOX")
        text += ((", " if place else "") + (f'"object_{number}": ' if keyed else "")).encode()
        first, at = len(text), len(text + before.encode())
        corners = ", ".join(f"{codec.quote}<|coord_{k}|>{codec.quote}" for k in box)
        text += (before + (f"[{corners}]" if is_box else "")).encode()
        own = tuple(found.span() for found in re.compile(rb"<\|coord_\d+\|>").finditer(text, at))
        text += behind.encode()
        if codec.scored and not reason:
            own += ((len(text) - 1 - len(f"<|coord_{score}|>"), len(text) - 1),)
        reason = "key_invalid" if keyed and number in numbers[:place] else reason
        value = Value((first, len(text)), reason, number if keyed else -1, template.isdigit(), coordinate_spans=own)
        if not reason:
            desc = re.compile(rb'"desc"\s*:\s*("((?:[^"\\]|\\.)*)")').search(text, first)
            value = replace(value, found=Truth(desc=json.loads(desc[1]), box=box, score=score), desc_span=desc.span(2))
        made, spans = [*made, value], [*spans, *own]
    text += CLOSE[codec.name].encode()
    ids = in_any_tokens(text, spans, random, vocabulary) if random else vocabulary.encode(text.decode())
    return Case(ids, text, len(OPENING[codec.name]), made, "")


def in_any_tokens(text: bytes, spans: list, random: Random, vocabulary: Vocabulary) -> list[int]:
    """Coordinate tokens at `spans`; between them tokens cut anywhere, in characters too, and single bytes."""
    ids = []
    for (_, first), (last, end) in pairwise([(0, 0), *spans, (len(text), len(text))]):
        cuts = random.choices(range(first, last + 1), k=random.choice([0, 1, 4, last - first]))
        for begin, behind in pairwise(sorted([first, *cuts, last])):
            whole = exactly(text[begin:behind], set(), vocabulary)
            ids += [vocabulary.byte_ids[byte] for byte in text[begin:behind]] if whole is None else whole
        ids += vocabulary.encode(text[last:end].decode())
    return ids

"""Rollouts made from a tree: what must be read from each is known before any parser sees it.

A case is a whole answer (an opening, values that are to be kept or dropped for a known reason, a close), white space
wherever JSON allows it, and one event: it is cut somewhere, something that can never continue stands somewhere in it,
something stands behind it, or nothing happens. Where a byte may be cut a token may be cut: the rest of it is spelled in
single bytes, as a model could.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from ds_stage2ab.carriers import Box, Truth
from ds_stage2ab.codec.text import CODECS, Codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.matching.parse import OTHER_GEOMETRY_KEYS, POLYGON_KEYS
from tests.rollout_tokens import ids_of, special, split
from tests.rollout_writer import WORDS, Writer

Ids = list[int]
JSON = tuple(name for name, codec in CODECS.items() if not codec.in_lines)
"""The forms of these cases; `tests/line_cases.py` has those of the other."""
NEVER = 0x01  # a byte that JSON has nowhere, not even in a string
NO_OPENING = {
    "array": ("no idea", "[1, 2]", "{", '{"object": [', '{"objects": {', "{'objects': []}", "\u4e2d", "", '"objects"'),
    "array_scored": ("no idea", '{"objects": {', ""),
    "keyed": ("no idea", "[1, 2]", "<{", "\u4e2d", "", " \n", '"object_1"'),
}


@dataclass(frozen=True)
class Value:
    """One value of the answer; spans are [first, last) bytes of the whole answer."""

    span: tuple[int, int]
    reason: str
    # "" if it is to be kept
    number: int
    # of its key; -1 where the form has none
    is_number: bool
    # complete only when a byte behind it has been read
    found: Truth | None = None
    desc_span: tuple[int, int] = (0, 0)
    coordinate_spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Case:
    """Response ids and what must be read from them."""

    ids: list[int]
    text: bytes
    # of the whole answer, before the event
    opening_end: int
    complete: list[Value]
    state: str


def random_box(random: Random) -> Box:
    x, y = random.randrange(990), random.randrange(990)
    return x, y, random.randrange(x + 1, 1000), random.randrange(y + 1, 1000)


def make_case(seed: int, vocabulary: Vocabulary, codec: Codec) -> tuple[Case, list[Truth]]:
    """The case of a seed, and true objects some of which it found."""
    random = Random(seed)
    writer, opening_end, values = _answer(random, codec)
    case = _happened(random, writer, vocabulary, opening_end, values)
    return case, _truth(random, [value.found for value in values if value.found])


def cut_everywhere(seed: int, vocabulary: Vocabulary, codec: Codec) -> tuple[Iterator[Case], list[Truth]]:
    """The answer of a seed, cut before each of its bytes (and so before each of its tokens)."""
    random = Random(seed)
    writer, opening_end, values = _answer(random, codec)
    text = bytes(writer.text)
    ids = ids_of(random, text, writer.coordinates, vocabulary)
    cases = (_cut(at, text, ids, vocabulary, opening_end, values, []) for at in range(len(text)))
    return cases, _truth(random, [value.found for value in values if value.found])


def _answer(random: Random, codec: Codec) -> tuple[Writer, int, list[Value]]:
    """A whole answer, the end of its opening, and its values."""
    writer = Writer(random, codec)
    writer.lexemes(codec.grammar["opening"])
    opening_end = len(writer.text)
    values: list[Value] = []
    for place in range(random.choice([0, 1, 1, 2, 3, 5])):
        if place:
            writer.space()
            writer.put(",")
        values.append(_value(writer, [value.number for value in values]))
    writer.lexemes(codec.grammar["closing"])
    return writer, opening_end, values


def _truth(random: Random, found: list[Truth]) -> list[Truth]:
    truth = [_nearly(random, one) for one in found if random.random() < 0.6]
    truth += [Truth(desc=random.choice(WORDS), box=random_box(random)) for _ in range(random.randrange(3))]
    if truth and random.random() < 0.1:
        truth.append(random.choice(truth))  # the same object twice
    random.shuffle(truth)
    return truth


def _nearly(random: Random, one: Truth) -> Truth:
    x1, y1, x2, y2 = one.box
    return Truth(desc=random.choice([one.desc, "other"]), box=(x1, y1, min(999, x2 + random.randrange(20)), y2))


def _value(writer: Writer, numbers: list[int]) -> Value:
    random, number = writer.random, -1
    if writer.codec.key[0]:
        number = random.choice([max(numbers, default=0) + 1] * 8 + [random.randrange(50), *numbers[-1:]])
        head, _ = writer.codec.key
        writer.space()
        writer.put(f'{head}{number}"')
        writer.space()
        writer.put(":")
    writer.space()
    first = len(writer.text)
    known = _kept(writer) if random.random() < 0.6 else _dropped(writer)
    repeated = number >= 0 and number in numbers
    reason = "key_invalid" if repeated else known.get("reason", "")
    parts = {} if reason else {name: known[name] for name in ("found", "desc_span", "coordinate_spans")}
    is_number = known.get("kind") == "number"
    return Value(span=(first, len(writer.text)), reason=reason, number=number, is_number=is_number, **parts)


def _kept(writer: Writer) -> dict:
    desc, box = writer.random.choice(WORDS), random_box(writer.random)
    parts = {"desc": lambda: writer.string(desc), "bbox_2d": lambda: _corners(writer, box)}
    score = 999
    if writer.codec.scored:
        score = writer.random.randrange(1000)
        parts["score"] = lambda: writer.corner(score)
    spans = writer.members(dict(writer.random.sample([*parts.items()], len(parts))))
    return {
        "found": Truth(desc=desc, box=box, score=score),
        "desc_span": spans["desc"],
        "coordinate_spans": (*spans["bbox_2d"], *[spans[key] for key in spans if key == "score"]),
    }


def _corners(writer: Writer, bins) -> list:
    return writer.several("[", "]", [lambda k=k: writer.corner(k) for k in bins])


def _dropped(writer: Writer) -> dict:
    reason = writer.random.choice([*DROPPED, *["missing_score"] * writer.codec.scored])
    if reason == "missing_score":
        _missing_score(writer)
        return {"reason": reason, "kind": None}
    kind = DROPPED[reason](writer)
    return {"reason": reason, "kind": kind}


def _box(writer: Writer):
    return lambda: _corners(writer, random_box(writer.random))


def _desc(writer: Writer):
    return lambda: writer.string(writer.random.choice(WORDS))


def _anything(writer: Writer):
    return lambda: writer.anything(2)


def _key_invalid(writer: Writer) -> str | None:
    choice = writer.random.randrange(4)
    if choice == 0:
        kind = writer.random.choice(["12", "null", '"text"', "array", "coordinate"])
        if kind == "array":
            writer.several("[", "]", [lambda: writer.anything(3)] * writer.random.randrange(3))
        elif kind == "coordinate":
            writer.corner(5)
        else:
            writer.put(kind)
        return "number" if kind == "12" else None
    if choice == 1:
        key = writer.random.choice(["desc", "bbox_2d"])
        parts = [("desc", _desc(writer)), ("bbox_2d", _box(writer)), (key, _anything(writer))]
        writer.several("{", "}", [lambda key=key, part=part: writer.member(key, part) for key, part in parts])
        return None
    if choice == 2:  # an answer inside of an answer
        inner = [lambda: writer.members({"desc": _desc(writer), "bbox_2d": _box(writer)})]
        writer.members({"objects": lambda: writer.several("[", "]", inner)})
        return None
    key = writer.random.choice([*["score"] * (not writer.codec.scored), "Desc", "", "\u4e2d", "bbox_2D"])
    writer.members({"desc": _desc(writer), key: _anything(writer), "bbox_2d": _box(writer)})
    return None


def _missing_desc(writer: Writer) -> None:
    no_text = {
        "number": lambda: writer.put("7"),
        "blank": lambda: writer.string(" \t\u3000"),
        "list": lambda: writer.put("[]"),
    }
    wrong = writer.random.choice(["", *no_text])
    writer.members({"bbox_2d": _box(writer)} | ({"desc": no_text[wrong]} if wrong else {}))


def _missing_geom(writer: Writer) -> None:
    writer.members({"desc": _desc(writer)})


def _other_geometry(keys):
    def write(writer: Writer) -> None:
        parts = {"desc": _desc(writer), writer.random.choice(sorted(keys)): _anything(writer)}
        writer.members(parts | ({"bbox_2d": _box(writer)} if writer.random.random() < 0.5 else {}))

    return write


def _wrong_arity(writer: Writer) -> None:
    random = writer.random
    wrong = random.choice([(), (1, 2, 3), (1, 2, 3, 4, 5), None])
    box = (lambda: writer.put(random.choice(["7", "null", "{}"]))) if wrong is None else lambda: _corners(writer, wrong)
    writer.members({"desc": _desc(writer), "bbox_2d": box})


def _non_coord_token(writer: Writer) -> None:
    random = writer.random
    parts = [lambda: writer.corner(5)] * 4
    for place in random.sample(range(4), random.randrange(1, 5)):
        parts[place] = random.choice([lambda: writer.put("7"), lambda: writer.put('"9"'), lambda: writer.put("[1]")])
    writer.members({"desc": _desc(writer), "bbox_2d": lambda: writer.several("[", "]", parts)})


def _bbox_invalid(writer: Writer) -> None:
    x1, y1, x2, y2 = random_box(writer.random)
    box = writer.random.choice([(x2, y1, x1, y2), (x1, y2, x2, y1), (x1, y1, x1, y2), (x1, y1, x2, y1)])
    writer.members({"desc": _desc(writer), "bbox_2d": lambda: _corners(writer, box)})


def _missing_score(writer: Writer) -> None:
    parts = {"desc": _desc(writer), "bbox_2d": _box(writer)}
    if writer.random.random() < 0.5:
        parts["score"] = writer.random.choice([lambda: writer.put("1"), lambda: writer.several("[", "]", [])])
    writer.members(dict(writer.random.sample([*parts.items()], len(parts))))


DROPPED = {
    "key_invalid": _key_invalid,
    "missing_desc": _missing_desc,
    "missing_geom": _missing_geom,
    "unknown_geom": _other_geometry(OTHER_GEOMETRY_KEYS),
    "poly_unsupported": _other_geometry(POLYGON_KEYS),
    "wrong_arity": _wrong_arity,
    "non_coord_token": _non_coord_token,
    "bbox_invalid": _bbox_invalid,
}


def _happened(
    random: Random, writer: Writer, vocabulary: Vocabulary, opening_end: int, values: list[Value]
) -> Case:
    """The answer after the event, and what is left of it."""
    text = bytes(writer.text)
    ids = ids_of(random, text, writer.coordinates, vocabulary)
    event = random.choice(["whole", "cut", "cut", "cut", "bad byte", "special", "behind", "another", "other text"])
    if event == "other text":
        garbage = random.choice(NO_OPENING[writer.codec.name])
        return Case(vocabulary.encode(garbage), garbage.encode(), -1, [], "no_json")
    if event in ("whole", "behind", "another"):
        behind = {"whole": [], "behind": [vocabulary.byte_ids[random.randrange(256)]], "another": ids}[event]
        state = "empty_answer" if not values else "trailing_garbage" if behind else "ok"
        return Case([*ids, *behind], text, opening_end, values, state)
    stray = {"cut": [], "bad byte": [vocabulary.byte_ids[NEVER]], "special": [special(random, vocabulary)]}[event]
    return _cut(random.randrange(len(text)), text, ids, vocabulary, opening_end, values, stray)


def _cut(
    at: int, text: bytes, ids: Ids, vocabulary: Vocabulary, opening_end: int, values: list[Value], stray: Ids
) -> Case:
    """The answer up to a byte; with something stray there, its rest behind that."""
    at, head, tail = split(at, ids, vocabulary)
    complete = [value for value in values if value.span[1] + value.is_number <= at]
    state = "malformed" if stray else "truncated" if complete else "truncated_first_object"
    if at < opening_end:
        state, complete = "no_json", []
    return Case([*head, *stray, *(tail if stray else [])], text, opening_end, complete, state)

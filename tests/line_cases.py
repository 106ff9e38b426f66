"""Rollouts in lines (`compact`) made from a tree: what must be read from each is known before any parser sees it.

A case is a whole answer, whose lines hold descriptions (some blank) and boxes (some with corners in the wrong order),
and one event: it is cut somewhere, something that can never continue stands somewhere in it, or nothing happens.
"""

from dataclasses import dataclass
from random import Random

from ds_stage2ab.carriers import Box, Truth
from ds_stage2ab.codec.bins import coordinate_token
from ds_stage2ab.codec.vocabulary import Vocabulary
from tests.rollout_cases import random_box
from tests.rollout_tokens import ids_of, special, split

NAMES = (
    *("cat", "red fox", "\u4e2d\u6587", "caf\u00e9", "\U0001f600 face", 'say "hi"', "a\\b", "]}", "a)", "(b", "0"),
    *("x\ty", '{"objects": [', "<|coord_", "a  b", "x<", "\u00e9", "-", "a\r.", "cat", "cat"),
)
ODD_NAMES = (" cat", "cat ", "\u3000x", "", "  ", "\t")
NEVER = 0xFF  # no byte of UTF-8


@dataclass(frozen=True)
class Value:
    """One value of the answer; spans are [first, last) bytes of the whole answer."""

    span: tuple[int, int]
    reason: str
    # "" if it is to be kept
    desc: str
    desc_span: tuple[int, int]
    corners: Box
    score: int
    # 999 where the form has none, as that of a `Truth`
    coordinate_spans: tuple[tuple[int, int], ...]

    @property
    def found(self) -> Truth:
        return Truth(desc=self.desc, box=self.corners, score=self.score)


@dataclass(frozen=True)
class Case:
    """Response ids and what must be read from them."""

    ids: list[int]
    text: bytes
    # of the whole answer, before the event
    complete: list[Value]
    state: str


class Answer:
    """A whole answer as it grows, in a form with scores or without."""

    def __init__(self, random: Random, scored: bool) -> None:
        self.random, self.scored = random, scored
        self.text = bytearray()
        self.coordinates: dict[int, int] = {}
        self.values: list[Value] = []

    def line(self, desc: str, boxes: list[Box]) -> None:
        if self.text:
            self.text += b"\n"
        begin = len(self.text)
        self.text += desc.encode()
        desc_span = (begin, len(self.text))
        for place, corners in enumerate(boxes):
            first, spans = len(self.text), []
            score = self.random.randrange(1000) if self.scored else 999
            for k in (*corners, *[score] * self.scored):
                self.coordinates[len(self.text)] = k
                spans.append((len(self.text), len(self.text) + len(coordinate_token(k))))
                self.text += coordinate_token(k).encode()
            span = (first if place else begin, len(self.text))
            reason = reason_of(desc, corners)
            self.values.append(Value(span, reason, desc, desc_span, corners, score, tuple(spans)))


def reason_of(desc: str, corners: Box) -> str:
    if not desc.strip():
        return "missing_desc"
    return "" if corners[0] < corners[2] and corners[1] < corners[3] else "bbox_invalid"


def make_answer(random: Random, scored: bool) -> Answer:
    answer = Answer(random, scored)
    for _ in range(random.choice([0, 1, 1, 2, 3, 5])):
        desc = random.choice(ODD_NAMES if random.random() < 0.15 else NAMES)
        answer.line(desc, [_box(random) for _ in range(random.choice([1, 1, 1, 2, 3]))])
    return answer


def _box(random: Random) -> Box:
    x1, y1, x2, y2 = random_box(random)
    return random.choice([(x2, y1, x1, y2), (x1, y1, x2, y1)]) if random.random() < 0.15 else (x1, y1, x2, y2)


def make_case(seed: int, vocabulary: Vocabulary, *, scored: bool = False) -> tuple[Case, list[Truth]]:
    """The case of a seed, and true objects some of which it found."""
    random = Random(seed)
    answer = make_answer(random, scored)
    ids = ids_of(random, bytes(answer.text), answer.coordinates, vocabulary)
    event = random.choice(["whole", "cut", "cut", "bad byte", "special"])
    at = len(answer.text) if event == "whole" or not answer.text else random.randrange(len(answer.text))
    stray = {"bad byte": [vocabulary.byte_ids[NEVER]], "special": [special(random, vocabulary)]}.get(event, [])
    return _happened(at, answer, ids, stray, vocabulary), _truth(random, answer)


def cut_everywhere(seed: int, vocabulary: Vocabulary, *, scored: bool = False) -> tuple[list[Case], list[Truth]]:
    """The answer of a seed, cut before each of its bytes (and so before each of its tokens)."""
    random = Random(seed)
    answer = make_answer(random, scored)
    ids = ids_of(random, bytes(answer.text), answer.coordinates, vocabulary)
    cases = [_happened(at, answer, ids, [], vocabulary) for at in range(len(answer.text) + 1)]
    return cases, _truth(random, answer)


def _happened(at: int, answer: Answer, ids: list[int], stray: list[int], vocabulary: Vocabulary) -> Case:
    """The answer up to a byte; with something stray there, its rest behind that."""
    head, tail = ids, []
    if at < len(answer.text):
        at, head, tail = split(at, ids, vocabulary)
    complete = [value for value in answer.values if value.span[1] <= at]
    closed = at == 0 or any(value.span[1] == at for value in complete)
    state = "truncated" if complete else "truncated_first_object"
    if closed:
        state = "ok" if complete else "empty_answer"
    if stray:
        state = "malformed"
    return Case([*head, *stray, *(tail if stray else [])], bytes(answer.text), complete, state)


def _truth(random: Random, answer: Answer) -> list[Truth]:
    """Written in any way, as long as lines can hold it; often of a name that was said last."""
    kept = [value.found for value in answer.values if not value.reason]
    truth = [_nearly(random, one) for one in kept if random.random() < 0.6]
    names = [*NAMES, *[value.desc for value in answer.values[-1:]] * 8]
    truth += [Truth(desc=random.choice(names), box=random_box(random)) for _ in range(random.randrange(4))]
    random.shuffle(truth)
    return [one for one in truth if one.desc == one.desc.strip() and one.desc]


def _nearly(random: Random, one: Truth) -> Truth:
    x1, y1, x2, y2 = one.box
    return Truth(desc=random.choice([one.desc, "other"]), box=(x1, y1, min(999, x2 + random.randrange(20)), y2))

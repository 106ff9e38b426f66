"""What a rollout becomes, with vocabularies that merge across every border, held against an oracle of bytes.

The oracle writes the text of a target itself, knows of every byte what it weighs and where a decision stands, and only
then looks at the tokens. Three tokenizers (Qwen's, the quickstart's, one of SentencePiece's kind), both forms.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import pairwise, product, takewhile
from random import Random

import pytest
from tokenizers import AddedToken

from ds_stage2ab.carriers import Match, Target, Truth
from ds_stage2ab.codec.text import CODECS, Codec, encode_answer
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.matching.append import appended_target
from ds_stage2ab.matching.assign import match_boxes
from ds_stage2ab.matching.parse import parse_rollout
from ds_stage2ab.matching.targets import Entry, answer_target, rewritten_target
from ds_stage2ab.tools.tiny_model import build_tokenizer
from tests.parts import as_tuples
from tests.real_tokenizers import qwen_vocabulary
from tests.rollout_cases import JSON, Case, make_case
from tests.unit.codec.test_sentencepiece import build
from tests.unit.matching.written import CLOSE, OPENING, exactly, in_any_tokens, offsets_of, scene, shifted, write

NUM_ANSWERS, NUM_TREES, NUM_OTHERS = 100, 40, 12  # of each of the six vocabularies and forms
COSTS = {"candidate_top_k": 10, "iou_gate": 0.3, "fp_cost": 1.0, "fn_cost": 1.0}
DESC, DROPS, NAMES = 0.5, 3.0, ("qwen", "quickstart", "sentencepiece")
REWRITE = {"desc_ce_weight": DESC, "where": "sample"}
APPEND = {"drop_invalid_struct_ce_multiplier": DROPS, **REWRITE}
LAST_VALUES = (
    # (the value, why it is dropped, the vocabularies that cannot write its end and what follows in one call)
    *(('{ "desc" :\n"x" , "bbox_2d" : BOX\r\n}', "", ()), ('{"bbox_2d":BOX,"desc":"\U0001f600\u4e2d"}', "", ())),
    *(('{"bbox_2d": BOX, "desc": "e\u0301"}', "", ("qwen",)), ('{"desc": "e\u0301", "bbox_2d": BOX}', "", ())),
    *(('{"bbox_2d": BOX, "desc": "<|im_end|>"}', "", NAMES), ('{"bbox_2d": BOX, "desc": "<|coord_5|>"}', "", NAMES)),
    *(('{"desc": "<|im_end|>", "bbox_2d": BOX}', "", ()), ('{"bbox_2d": BOX, "desc": "a\u2581b"}', "", NAMES[2:])),
    *(('{"desc": "<|image_pad|>"}', "missing_geom", NAMES), ('{"desc": "<|coord_5|>"}', "missing_geom", NAMES)),
    ('{"desc": "x", "a": [{"x": BOX}, "<|im_end|>"]}', "key_invalid", NAMES),
    *(('{"desc": "x", "a": ["<|im_end|>", BOX]}', "key_invalid", ()), ('"e\u0301"', "key_invalid", ("qwen",))),
    *(("[]", "key_invalid", ()), ("{}", "missing_desc", ()), ("12", "key_invalid", ())),
)
pytestmark = pytest.mark.parametrize(("name", "form"), [*product(NAMES, JSON)])


@cache
def vocabulary_of(name: str) -> Vocabulary:
    if name == "qwen":
        return qwen_vocabulary()
    tokenizer = {"sentencepiece": build, "quickstart": build_tokenizer}[name]()
    tokenizer.add_tokens([AddedToken(f"<|coord_{k}|>", special=False, normalized=False) for k in range(1000)])
    return Vocabulary.from_tokenizer(tokenizer)


@dataclass
class Page:
    """A target as bytes; everything is by offset, `decision` by that of the first byte after a value.

    `last` are last bytes of generated values: the token that holds one decides too, unless nothing is to be taught.
    """

    text: bytes
    weight: dict[int, float]
    bins: dict[int, int] = field(default_factory=dict)
    scores: set[int] = field(default_factory=set)
    decision: dict[int, float] = field(default_factory=dict)
    last: dict[int, float] = field(default_factory=dict)
    kept: int = 0
    close: int = 0

    def end(self, objects: list[Truth], structure: float, separator: str, answer: Case, codec: Codec) -> None:
        """What stands behind the opening of `answer`: it has the objects, with coordinates that were said."""
        self.decision[len(self.text)] = structure  # where no value was said, the first byte behind the opening decides
        shift = len(self.text) + len(separator) - answer.opening_end
        self.text += separator.encode() + answer.text[answer.opening_end :]
        self.close = len(self.text) - len(CLOSE[codec.name])
        self.weight.update(dict.fromkeys(range(len(self.weight), self.close), structure))
        for one, value in zip(objects, answer.complete, strict=True):
            self.weight.update({shift + at: DESC for at in range(*value.desc_span)})
            self.bins.update({shift + at: k for (at, _), k in zip(value.coordinate_spans[:4], one.box, strict=True)})
            self.scores |= {shift + at for at, _ in value.coordinate_spans[4:]}
            self.decision[shift + value.span[1]] = structure
        self.decision[self.close] = 1.0
        self.weight.update(dict.fromkeys(range(self.close, len(self.text)), 1.0))


def following(numbers: list[int]) -> range:
    """The numbers of further objects; the grammar reads nine digits, so nothing follows one at that limit."""
    return range(max([0, *(number for number in numbers if number < 999_990_000)]) + 1, 10**9)


def page_of_append(case: Case, match: Match, truth: list[Truth], vocabulary: Vocabulary, codec: Codec) -> Page:
    said, missed = case.complete, [truth[place] for place in match.missed]
    text = case.text[: said[-1].span[1]] if said else OPENING[codec.name].encode()
    page = Page(text, dict.fromkeys(range(len(text)), 0.0), kept=len(text))
    kept = [value for value in said if not value.reason]
    for place, true in match.pairs:
        spans = kept[place].coordinate_spans
        page.weight.update(dict.fromkeys(range(*kept[place].span), 1.0))
        page.weight.update({at: 0.0 for span in (kept[place].desc_span, *spans) for at in range(*span)})
        page.bins.update({at: k for (at, _), k in zip(spans[:4], truth[true].box, strict=True)})
    page.scores |= {at for value in kept for at, _ in value.coordinate_spans[4:]}
    for value in said[:-1]:
        page.decision[value.span[1]] = float(bool(missed) or max(page.bins, default=0) > value.span[1])
        page.last[value.span[1] - 1] = page.decision[value.span[1]]
    page.last |= {value.span[1] - 1: 1.0 for value in said[-1:]}
    answer = write(missed, vocabulary, codec, numbers=following([value.number for value in said]))
    structure = DROPS if any(value.reason for value in said) else 1.0
    page.end(missed, structure, ", " if said and missed else "", answer, codec)
    return page


def check_bytes(page: Page, target: Target, vocabulary: Vocabulary) -> None:
    """The text, and every field that belongs to positions, token by token."""
    *ids, stop = target.ids.tolist()
    assert (stop, vocabulary.written_all(ids)) == (vocabulary.stop_id, page.text)
    offsets, go_on = offsets_of(ids, vocabulary), 0
    for place, (first, last) in enumerate(pairwise(offsets)):
        weight, closes = float(target.weights[place]), first <= page.close < last
        generated = [page.weight[at] for at in range(first, min(last, page.kept))]
        decisions = [page.decision[at] for at in range(first, last) if at in page.decision]
        ends = [1.0 for at in range(first, last) if page.last.get(at)]
        # Of values without any coordinates a token can hold several decisions.
        expected = [1.0] if closes else decisions or ends or [min(generated, default=page.weight[first])]
        expected = [0.0] if ids[place] in vocabulary.coordinate_bins else expected
        assert weight in expected, f"token {place}, {page.text[first:last]!r}: {weight}, not {expected}"
        assert bool(target.is_desc[place]) == (page.weight[first] == DESC), f"token {place}"
        # Going on is taught exactly where a true object is still to come, and stopping at the close alone.
        go_on += bool(decisions) and weight > 0 and not closes
        assert not decisions or (weight > 0) == (closes or max(page.bins, default=-1) > first), f"token {place}"
    supervised = [*zip(target.slots.tolist(), target.bins.tolist(), strict=True)]
    assert supervised == [(offsets.index(at), k) for at, k in sorted(page.bins.items())]
    assert all(ids[slot] in vocabulary.coordinate_bins for slot, _ in supervised)
    assert sorted(target.score_slots.tolist()) == [offsets.index(at) for at in sorted(page.scores)]
    assert (target.weights[-1], target.is_desc[-1], target.num_go_on, target.num_stop) == (1, False, go_on, 1)


def check_seam(case: Case, page: Page, target: Target, vocabulary: Vocabulary) -> None:
    """Generated ids up to and with the anchor, and behind it one encoding if there is an exact one."""
    ids = [*takewhile(vocabulary.written, case.ids)]
    ends = offsets_of(ids, vocabulary)[1:]
    begin, cut = case.complete[-1].span if case.complete else (0, 0)
    slots = [place for place, end in enumerate(ends) if begin < end <= cut and ids[place] in vocabulary.coordinate_bins]
    anchored = slots[-1] + 1 if slots else sum(end <= begin for end in ends)
    whole = sum(end <= cut for end in ends)
    for num_generated, fallback in ((anchored, False), (whole, True)):
        behind = [0, *ends][num_generated]
        appended = {offset - behind for offset in (*page.bins, *page.scores) if offset >= page.kept}
        rest = exactly(page.text[behind:], appended, vocabulary)
        if rest is not None:
            assert (target.seam_fallback, target.ids[:-1].tolist()) == (fallback, [*ids[:num_generated], *rest])
            return
    assert target.seam_fallback and target.ids[:whole].tolist() == ids[:whole]


def check_document(target: Target, numbers: list[int], truth, vocabulary: Vocabulary, codec: Codec) -> None:
    """One JSON document of the grammar with these keys (-1: none), and every true object in it once."""
    *ids, _ = target.ids.tolist()
    bare = {} if codec.name == "keyed" else vocabulary.coordinate_bins
    texts = [str(bare[token]).encode() if token in bare else vocabulary.written(token) for token in ids]
    members = json.loads(b"".join(texts), object_pairs_hook=tuple)
    assert [key for key, _ in members] == ([f"object_{number}" for number in numbers] if codec.quote else ["objects"])
    assert codec.name == "keyed" or len(members[0][1]) == len(numbers)
    assert parse_rollout(ids, vocabulary, codec).state == ("ok" if numbers else "empty_answer")
    assert sorted(map(tuple, target.bins.reshape(-1, 4).tolist())) == sorted(one.box for one in truth)


def check(case: Case, truth: list[Truth], vocabulary: Vocabulary, codec: Codec) -> list[Target]:
    """The targets of a rollout, held against the oracle: appended, rewritten as it was said, as the data is."""
    parsed = parse_rollout(case.ids, vocabulary, codec)
    found = [value.found for value in case.complete if not value.reason]
    match = match_boxes(parsed.objects, truth, **COSTS)
    try:
        assert [(one.desc, one.box) for one in parsed.objects] == [(one.desc, one.box) for one in found]
        assert not codec.scored or [one.score for one in parsed.objects] == [one.score for one in found]
        page = page_of_append(case, match, truth, vocabulary, codec)
        targets = [appended_target(parsed, match, truth, vocabulary, codec, **APPEND)]
        check_bytes(page, targets[0], vocabulary)
        check_seam(case, page, targets[0], vocabulary)
        numbers = [value.number for value in case.complete]
        numbers += following(numbers)[: len(match.missed)]
        check_document(targets[0], numbers, truth, vocabulary, codec)
        said = {true: {"box": found[place].box, "score": found[place].score} for place, true in match.pairs}
        for said_order, order in ((True, [*said, *match.missed]), (False, range(len(truth)))):
            made_of = (parsed, match, truth, vocabulary, codec)
            made = rewritten_target(*made_of, said_order=said_order, keep_spurious=False, **REWRITE)
            inputs = [replace(truth[place], **said.get(place, {})) for place in order]
            assert not made.seam_fallback and made.ids.tolist() == encode_answer(inputs, vocabulary, codec).ids.tolist()
            page = Page(OPENING[codec.name].encode(), dict.fromkeys(range(len(OPENING[codec.name])), 1.0))
            page.end([truth[place] for place in order], 1.0, "", write(inputs, vocabulary, codec), codec)
            check_bytes(page, made, vocabulary)
            check_document(made, [*range(1, len(truth) + 1)], truth, vocabulary, codec)
            targets.append(made)
    except AssertionError as error:
        error.add_note(f"{codec.name}: {case.text!r}, ids {case.ids}, truth {truth}")
        raise
    return targets


def test_answers_that_channel_a_could_have_written(name, form):
    """Exact answers and shifted ones, of objects in any order, some of them invented; whole and broken off."""
    vocabulary, codec = vocabulary_of(name), CODECS[form]
    for seed in range(NUM_ANSWERS):
        random = Random(seed)
        objects = scene(random, vocabulary, random.randrange(9))
        truth = [one for one in objects if random.random() < 0.8]
        said = [one for one in objects if one not in truth or random.random() < 0.7]
        missed = [one for one in truth if one not in said]
        said = [shifted(random, one) for one in random.sample(said, len(said))] if seed % 2 else said
        case = write(said, vocabulary, codec)
        assert case.ids == encode_answer(said, vocabulary, codec).ids[:-1].tolist()
        if seed % 3 == 0:  # it breaks off in another object
            ids = encode_answer([*said, *scene(random, vocabulary, 1)], vocabulary, codec).ids[:-1].tolist()
            ends = [end + len(CLOSE[form]) for end in offsets_of(ids, vocabulary)]
            cuts = [num for num, end in enumerate(ends) if len(case.text) <= end <= ends[-1] - len(CLOSE[form]) - 2]
            case = replace(case, ids=ids[: random.choice(cuts)])
        target = check(case, truth, vocabulary, codec)[0]
        ids = encode_answer([*said, *missed], vocabulary, codec).ids.tolist()
        assert (target.ids.tolist(), target.seam_fallback) == (ids, False)


def test_any_answer_in_any_tokens(name, form):
    """Blanks anywhere, members in any order, dropped values, numbers with holes, cuts."""
    vocabulary, codec = vocabulary_of(name), CODECS[form]
    for seed in range(NUM_TREES):
        case, truth = make_case(seed, vocabulary, codec)
        known = [*takewhile(vocabulary.written, case.ids)]
        places = zip(known, pairwise(offsets_of(known, vocabulary)), strict=True)
        spans = [span for token, span in places if token in vocabulary.coordinate_bins]
        ids = in_any_tokens(vocabulary.written_all(known), spans, Random(seed), vocabulary) + case.ids[len(known) :]
        check(replace(case, ids=ids), truth, vocabulary, codec)


def test_last_values_that_one_encoding_cannot_write(name, form):
    """The seam falls back for these alone."""
    vocabulary, codec = vocabulary_of(name), CODECS[form]
    for seed, (template, reason, unwritable) in enumerate(LAST_VALUES * 4):
        random = Random(seed)
        *said, last, missed = scene(random, vocabulary, random.randrange(2, 5))
        case = write([*said, (template, last.box, reason)], vocabulary, codec, random)
        truth = random.choice([[*said, last, missed], [missed], said, []])
        falls_back = name in unwritable and (bool(reason) or not codec.scored)  # behind a score stands a brace alone
        assert check(case, truth, vocabulary, codec)[0].seam_fallback == falls_back, template


def test_without_a_value_the_codecs_own_opening_is_kept(name, form):
    vocabulary, codec = vocabulary_of(name), CODECS[form]
    case = Case(vocabulary.encode(f"\n{OPENING[form]} "), OPENING[form].encode(), len(OPENING[form]), [], "")
    check(case, scene(Random(0), vocabulary, 2), vocabulary, codec)


@pytest.mark.parametrize("highest", [40, 999_999_999])
def test_numbers_go_on_from_the_highest(name, form, highest):
    """With holes, in disorder, and twice (the second of two is dropped): `check` knows the keys."""
    vocabulary, codec = vocabulary_of(name), CODECS[form]
    for seed in range(NUM_OTHERS):
        *said, missed = scene(Random(seed), vocabulary, 5)
        numbers = Random(seed).choices([0, 2, 3, 7, highest], k=4)
        check(write(said, vocabulary, codec, numbers=numbers), [missed, *said], vocabulary, codec)


def test_what_is_wrong_leaves_no_trace_in_a_rewritten_answer(name, form):
    """Spurious, repeated, dropped and renamed values among exact ones, or none: what is left is Channel A's target."""
    vocabulary, codec = vocabulary_of(name), CODECS[form]
    for seed in range(NUM_OTHERS):
        random = Random(seed)
        *truth, spurious = scene(random, vocabulary, random.randrange(1, 8))
        said = random.sample(truth, random.randrange(len(truth) + 1)) if seed % 3 else truth
        values = [replace(one, desc=random.choice([one.desc, "another"])) for one in said] if seed % 3 else truth
        wrong = [spurious, *(shifted(random, one) for one in said)]
        wrong += [(template, spurious.box, reason) for template, reason, _ in LAST_VALUES if reason]
        values = [*enumerate(values), *((random.uniform(-1, 6), value) for value in wrong if seed % 3)]
        values = [value for _, value in sorted(values, key=lambda pair: pair[0])]
        _, *rewritten = check(write(values, vocabulary, codec, random if seed % 3 else None), truth, vocabulary, codec)
        for target, objects in zip(rewritten, ([*dict.fromkeys([*said, *truth])], truth), strict=True):
            entries = [Entry(read=one, learned=one) for one in objects]
            taught = as_tuples(answer_target(entries, vocabulary, codec, **REWRITE))
            assert asdict(as_tuples(target)) == asdict(taught)


def test_a_wrong_expectation_is_found(name, form):
    """The oracle itself: one changed id, weight, mark or seam fails."""
    vocabulary, codec, case = vocabulary_of(name), CODECS[form], write([], vocabulary_of(name), CODECS[form])
    truth = scene(Random(5), vocabulary, 2)
    target = check(case, truth, vocabulary, codec)[0]
    page = page_of_append(case, match_boxes([], truth, **COSTS), truth, vocabulary, codec)
    for changed, place in product(("ids", "weights", "is_desc"), range(len(target.ids))):
        values = getattr(target, changed).copy()
        values[place] = values[place] == 0
        with pytest.raises(AssertionError):
            check_bytes(page, replace(target, **{changed: values}), vocabulary)
    with pytest.raises(AssertionError):
        check_seam(case, page, replace(target, seam_fallback=True), vocabulary)

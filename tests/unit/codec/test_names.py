"""Names that are one to a reader are one to every figure, whatever Unicode form a label or a tokenizer has."""

from unicodedata import normalize

import pytest

from ds_stage2ab.carriers import Match, Truth
from ds_stage2ab.codec.names import compared
from ds_stage2ab.evaluation.average_precision import Detections, average_precision
from ds_stage2ab.evaluation.f1 import count_by_description, score_image
from ds_stage2ab.matching.health import rollout_terms, target_terms
from tests.unit.matching.test_health import found, parsed, rollout, target

BOX = (0, 0, 500, 500)
NAMES = (
    "tr\u00e8s",  # Latin with an accent
    "\ud55c\uad6d",  # Hangul, whose syllables decompose to letters
    "\u1ec7",  # two marks on one letter, in an order that only a normal form settles
    "\u0130STANBUL",  # lower case of this first letter is itself decomposed
)


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_takes_both_forms_for_one_name(name):
    written, label = (Truth(desc=normalize(form, name), box=BOX) for form in ("NFC", "NFD"))
    assert written.desc != label.desc
    pairs = score_image([written], [label]).pairs
    assert pairs == ((0, 0),)
    assert list(count_by_description([([written], [label], pairs)])) == [compared(name)]
    image = Detections(width=64, height=64, truth=[label], predicted=[written], scores=[1.0])
    assert average_precision([image]).ap == pytest.approx(1.0)
    answer, match = parsed(found(written.desc, *BOX)), Match(pairs=((0, 0),), missed=(), spurious=())
    assert rollout_terms(rollout(3), answer, match, [label])["match/same_desc_rate"] == (1, 1)
    assert target_terms(target(0), answer, match, [label], iou_gate=0.3)["target/renamed"] == (0, 1)


def test_other_letters_are_other_names():
    assert compared("tr\u00e8s") != compared("tres")
    assert compared("m\u00b2") != compared("m2")  # alike in compatibility forms only: two names

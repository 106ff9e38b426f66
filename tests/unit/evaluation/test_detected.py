"""The scores of an answer's objects, from the probabilities of its tokens."""

import numpy as np
import pytest

from ds_stage2ab.carriers import Probabilities, Rollout, Truth
from ds_stage2ab.codec.text import CODECS, encode_answer
from ds_stage2ab.evaluation.detected import detected
from tests.spelled import WORDS, build_vocabulary

CAT = Truth(desc="cat", box=(1, 2, 300, 400), score=999)
TWIN = Truth(desc="cat", box=(500, 2, 800, 400), score=0)
OWL = Truth(desc="owl", box=(500, 600, 900, 900), score=999)


@pytest.fixture(scope="module")
def words():
    return build_vocabulary((*WORDS, "score", "],"))


def answered(words, codec, *, known=True):
    """Every structure token has probability 1; cats 0.8 and owls 0.5; coordinates 0.9; scores 0.75."""
    answer = encode_answer([CAT, TWIN, OWL], words, codec)
    ids = answer.ids[:-1]
    p = np.ones(len(ids))
    p[answer.is_coord[:-1]] = 0.9
    p[answer.score_slots] = 0.75
    written = [words.written(token) for token in ids.tolist()]
    p[[token == b"cat" for token in written]] = 0.8
    p[[token == b"owl" for token in written]] = 0.5
    given = Probabilities(log_probs=np.log(p).astype(np.float32), coordinate_mass=np.ones(len(ids), np.float32))
    told = {"sample_id": "a", "draw": 0, "prompt_ids": (1,), "weight_version": "", "source": ""}
    told |= {"seed": 0, "seconds": 0.0}
    rollout = Rollout(
        response_ids=tuple(ids.tolist()), finish="stop", attempt=1, probabilities=given if known else None, **told
    )
    return detected(rollout, words, codec)


def test_a_score_is_the_confidence_of_the_box_times_the_probability_of_its_name(words):
    found = answered(words, CODECS["array_scored"])
    assert found.ranked == "by_score"
    assert found.scores == pytest.approx((0.8 * 0.75, 0.8 * 0.25, 0.5 * 0.75))
    assert found.token_scores == pytest.approx((0.8 * 0.9**4, 0.8 * 0.9**4, 0.5 * 0.9**4))


def test_boxes_of_one_line_share_its_name(words):
    found = answered(words, CODECS["compact_scored"])
    assert found.scores == pytest.approx((0.8 * 0.75, 0.8 * 0.25, 0.5 * 0.75))


def test_without_probabilities_the_written_score_is_what_there_is(words):
    found = answered(words, CODECS["array_scored"], known=False)
    assert (found.scores, found.token_scores, found.ranked) == ((1.0, 0.0, 1.0), None, "by_score")


def test_a_form_without_scores_ranks_by_its_tokens(words):
    known, unknown = (answered(words, CODECS["array"], known=known) for known in (True, False))
    assert (known.ranked, known.scores) == ("by_probability", known.token_scores)
    assert (unknown.ranked, unknown.scores) == ("unranked", None)

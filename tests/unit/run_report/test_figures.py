"""What the answers of an evaluation say, counted by hand on three images."""

from pathlib import Path

import pytest

from ds_stage2ab.carriers import Truth
from ds_stage2ab.errors import DataError
from ds_stage2ab.evaluation.answers import read_answers, save_answers
from ds_stage2ab.evaluation.f1 import score_image, set_score, wrong_names
from ds_stage2ab.run_report.figures import confusion, descriptions, over_thresholds
from tests.unit.run_report.folders import CAT, DOG, FAR, FORGED, answers


@pytest.fixture
def found(tmp_path):
    images = [tmp_path / f"{place}.png" for place in range(3)]
    return read_answers(save_answers(tmp_path, 20, answers(images, 20)))


def test_lines_come_back_as_they_were(found, tmp_path):
    one, two, three = found
    assert one.predicted == (Truth(desc="Cat ", box=CAT), Truth(desc="dog", box=DOG))
    assert (one.scores, one.pairs, one.image) == ((0.5, 0.25), ((0, 0), (1, 1)), tmp_path / "0.png")
    assert (two.truth, two.pairs) == ((Truth(desc="cat", box=CAT),), ())
    assert (three.predicted, three.scores, three.state, three.finish) == ((), (), "malformed", "length")
    assert len(read_answers(tmp_path / "step-000020.jsonl", 2)) == 2


@pytest.mark.parametrize("line", ["{}", "[]", "no JSON", '{"objects": [{"score": 1}], "finish": "never"}'])
def test_a_foreign_line_is_named(tmp_path, line):
    file = Path(tmp_path / "step-000020.jsonl")
    file.write_text(line + "\n")
    with pytest.raises(DataError, match="not a line of an evaluation") as caught:
        read_answers(file)
    assert caught.value.where == f"{file}:1"


def test_below_the_lowest_score_the_figures_are_the_evaluations(found):
    """4 predicted, 4 true, 2 pairs: precision, recall and F1 are all 1/2."""
    figures = over_thresholds(found)
    score = set_score([score_image(one.predicted, one.truth) for one in found])
    assert (figures.precision[0], figures.recall[0], figures.f1[0]) == (score.precision, score.recall, score.f1)
    assert (figures.precision[0], figures.kept[0]) == (0.5, 1.0)
    # at the highest score the cat alone is left: 1 of 1, 1 of 4, 2 / (1 + 4)
    assert (figures.threshold[-1], figures.precision[-1], figures.recall[-1], figures.f1[-1]) == (0.5, 1.0, 0.25, 0.4)
    # above 1/8 are the cat and the dog
    place = next(place for place, cut in enumerate(figures.threshold) if cut > 0.125)
    assert (figures.precision[place], figures.recall[place], figures.kept[place]) == (1.0, 0.5, 0.5)


def test_without_scores_there_is_no_threshold(tmp_path):
    lines = answers([tmp_path / "a.png"] * 3, 20)
    for line in lines:
        for one in line["objects"]:
            one["score"] = None
    assert over_thresholds(read_answers(save_answers(tmp_path, 1, lines))) is None
    assert over_thresholds([]) is None


def test_every_found_box_is_named_once(found):
    assert confusion(found) == {("cat", "cat"): 1, ("dog", "dog"): 1, ("cat", "dog"): 1}


def test_a_wrong_name_needs_a_box_that_nothing_else_took():
    truth = [Truth(desc="cat", box=CAT), Truth(desc="dog", box=DOG)]
    twice = [Truth(desc="cat", box=CAT), Truth(desc="cow", box=CAT), Truth(desc="cow", box=DOG)]
    pairs = score_image(twice, truth).pairs
    assert (pairs, wrong_names(twice, truth, pairs)) == (((0, 0),), ((2, 1),))
    assert wrong_names([Truth(desc="dog", box=FAR)], truth, ()) == ()


def test_the_rows_of_descriptions(found):
    rows = {row.name: row for row in descriptions(found, num_worst=1)}
    assert list(rows) == ["dog", "cat", FORGED.lower()]
    cat, dog = rows["cat"], rows["dog"]
    assert (cat.true, cat.predicted, cat.matched, cat.precision, cat.recall) == (2, 1, 1, 1.0, 0.5)
    assert (cat.f1, cat.matched_iou) == (2 / 3, 1.0)
    assert (dog.true, dog.predicted, dog.matched, dog.f1) == (2, 2, 1, 0.5)
    assert (rows[FORGED.lower()].recall, rows[FORGED.lower()].ap) == (None, None)
    # the cat was missed in the second image; a dog was spurious there, and missed in the third
    assert (cat.worst, dog.worst) == (((1, 1),), ((1, 1),))
    # AP of cats: the one that is found comes before any error, precision is 1 up to a recall of 1/2: 51 of 101 recalls
    assert cat.ap == pytest.approx(51 / 101)

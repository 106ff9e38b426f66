"""The registry: names, reductions, and the document that explains each metric."""

import re
from pathlib import Path

import pytest

from ds_stage2ab.metrics.registry import METRICS, check_channel, reduce_terms

DOCUMENT = Path(__file__).parents[3] / "docs" / "training" / "METRICS_LOSSES.md"


def test_mean_is_sum_over_count_never_a_mean_of_means():
    # Two packs: text CE 2 + 4 over 2 samples, then 9 over 1 sample: 15 / 3 = 5 (the mean of means would be 6).
    assert reduce_terms({"loss/text_ce": (2.0 + 4.0 + 9.0, 2 + 1)}) == {"loss/text_ce": 5.0}


def test_sum_ignores_the_count():
    assert reduce_terms({"train/packs": (7, 2)}) == {"train/packs": 7}


def test_a_term_that_was_never_seen_is_left_out():
    assert reduce_terms({"loss/desc_ce": (0.0, 0), "coord/mass": (0.0, 3)}) == {"coord/mass": 0.0}


@pytest.mark.parametrize("name", ["loss/bbox_giou", "text_ce", "train/grad_norm", "eval/seconds"])
def test_undeclared_names_and_metrics_that_are_no_terms_are_refused(name):
    with pytest.raises(AssertionError, match=name):
        reduce_terms({name: (1.0, 1)})


def test_a_step_may_not_emit_an_evaluation_metric_nor_the_reverse():
    check_channel({"loss/total": 1.0}, "A")
    check_channel({"loss/total": 1.0}, "B")
    check_channel({"eval/f1": 1.0}, "eval")
    check_channel({"match/f1": 1.0}, "B")
    with pytest.raises(AssertionError, match="match/f1"):
        check_channel({"match/f1": 1.0}, "A")
    with pytest.raises(AssertionError, match="eval/f1"):
        check_channel({"eval/f1": 1.0}, "A")
    with pytest.raises(AssertionError, match="loss/total"):
        check_channel({"loss/total": 1.0}, "eval")


def test_names_have_a_group_and_that_of_evaluations_is_theirs_alone():
    for name, metric in METRICS.items():
        assert metric.name == name
        assert re.fullmatch(r"(loss|coord|rollout|match|parse|drop|target|train|time|eval)/[a-z0-9_]+", name)
        assert (metric.channel == "eval") == name.startswith("eval/")


def test_the_document_has_one_row_for_each_metric_and_no_other():
    rows = re.findall(r"^\| `([a-z]+/[a-z0-9_]+)` \| ([^|]+) \| ([^|]+) \|", DOCUMENT.read_text(), flags=re.MULTILINE)
    assert [name for name, _, _ in rows] == list(METRICS)
    for name, unit, reduction in rows:
        assert (unit.strip(), reduction.strip()) == (METRICS[name].unit, METRICS[name].reduction), name

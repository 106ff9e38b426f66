"""What the learner says of an answer that another wrote is what `generate` would have recorded while writing it."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from ds_stage2ab.codec.text import get_codec
from ds_stage2ab.data.records import read_records
from ds_stage2ab.engine.build import position_index
from ds_stage2ab.evaluation.evaluator import Evaluator
from ds_stage2ab.rollout import scoring
from ds_stage2ab.rollout.hf import HfBackend
from ds_stage2ab.rollout.scoring import Scorer
from tests.unit.parts import greedy_sampling, load_bench

SAMPLING = greedy_sampling(with_probabilities=True)


@pytest.fixture(scope="module")
def bench(shipped):
    return load_bench(shipped, num_samples=4)


def backend_of(bench):
    settings = {"decode_batch_size": 4, "start_id": "start", "seed": 0}
    return HfBackend(lambda: nullcontext(bench.model), bench.vocabulary, position_index(bench.model), **settings)


def scorer_of(bench):
    return Scorer(bench.model, bench.vocabulary, position_index(bench.model))


class Mute:
    """As servers are: its rollouts carry no probabilities, and the learner is asked for them."""

    generate_lazily = None

    def __init__(self, bench, score):
        self.drawing, self.score = backend_of(bench), score
        self.current_weights = self.drawing.current_weights

    def generate(self, samples, sampling, *, finished_steps):
        drawn = self.drawing.generate(samples, sampling, finished_steps=finished_steps)
        return (replace(rollout, probabilities=None) for rollout in drawn)


@pytest.mark.parametrize("rows", [256, 7])
def test_they_are_those_that_generate_records(bench, monkeypatch, rows):
    """Whatever number of places is looked at at a time."""
    monkeypatch.setattr(scoring, "ROWS", rows)
    backend, scorer = backend_of(bench), scorer_of(bench)
    with backend.current_weights(0):
        rollouts = backend.generate(bench.samples, SAMPLING, finished_steps=0)
    for sample, rollout in zip(bench.samples, rollouts, strict=True):
        found, recorded = scorer(sample, rollout.response_ids), rollout.probabilities
        assert found.log_probs.dtype == found.coordinate_mass.dtype == np.float32
        np.testing.assert_allclose(found.log_probs, recorded.log_probs, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.coordinate_mass, recorded.coordinate_mass, rtol=1e-4, atol=1e-4)


def test_an_empty_answer_has_none_and_the_model_runs_all_the_same(bench):
    """Other ranks may wait for its weights."""
    calls = []
    handle = bench.model.model.register_forward_hook(lambda *_: calls.append(1))
    found = scorer_of(bench)(bench.samples[0], ())
    handle.remove()
    assert (len(found.log_probs), len(found.coordinate_mass), len(calls)) == (0, 0, 1)


def test_a_model_in_training_stays_there(bench):
    bench.model.train()
    scorer_of(bench)(bench.samples[0], bench.vocabulary.encode("digit"))
    assert bench.model.training
    bench.model.eval()


def evaluated(bench, parts, world, backend):
    records = read_records(parts.data / "validation.jsonl", image_root=None, box_format="bins")
    judge = Evaluator(
        records, bench.encoder.encode, backend, SAMPLING,
        codec=get_codec("array"), vocabulary=bench.vocabulary, world=world, pictures=None, num_pictures=0,
        warn=str,
    )  # fmt: skip
    return {name: value for name, value in judge.run(0).figures.items() if "second" not in name}


def test_an_evaluation_is_ranked_by_the_probabilities_of_either_backend(bench, shipped, world):
    recorded = evaluated(bench, shipped, world, backend_of(bench))
    scored = evaluated(bench, shipped, world, Mute(bench, scorer_of(bench)))
    assert scored == pytest.approx(recorded, rel=1e-5)
    assert 0 < scored["eval/ap_by_probability"] < 1 and 0 < scored["eval/coord_mass"] <= 1


class ShortRank:
    """One of two ranks: the other has a sample more. Collectives are noted, nobody is waited for."""

    rank, size = 1, 2

    def __init__(self, diary):
        self.diary = diary

    def raise_together(self, doing, *, num_flags=0):
        return nullcontext(SimpleNamespace(flags=[0] * num_flags))

    def all_reduce_max(self, count):
        return [count + 1]

    def gather(self, value):
        raise StopIteration(self.diary.append("gather"))


def test_a_rank_with_fewer_samples_scores_as_often_as_the_others(bench, shipped):
    """5 of 11 samples: five answers and one dummy, before anything else is exchanged."""
    diary = []

    def score(sample, response):
        diary.append((sample.id, len(response) > 0))
        return scorer_of(bench)(sample, response)

    records = read_records(shipped.data / "validation.jsonl", image_root=None, box_format="bins")[:11]
    judge = Evaluator(
        records, bench.encoder.encode, Mute(bench, score), SAMPLING,
        codec=get_codec("array"), vocabulary=bench.vocabulary, world=ShortRank(diary), pictures=None, num_pictures=0,
        warn=str,
    )  # fmt: skip
    with pytest.raises(StopIteration):
        judge.run(0)
    mine = [(record.id, True) for record in sorted(records[1::2], key=lambda record: -len(record.objects))]
    assert diary == [*mine, (records[0].id, False), "gather"]

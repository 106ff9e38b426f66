"""An evaluation on two real servers beside its answers alone: the learner's part is hidden, and no permit is idle.

The servers' passes sleep, as on devices of their own. Answers alone: one batch of all held-out samples, that this
process asks for and does nothing else.

And what it would save to run forward and backward of the next A step while these servers answer: a run does not, since
only that one step's can lie there, before its update.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from ds_stage2ab.carriers import Record, Rollout
from ds_stage2ab.codec.text import get_codec
from ds_stage2ab.config.load import load_config
from ds_stage2ab.data.records import read_records
from ds_stage2ab.evaluation.evaluator import Evaluator
from ds_stage2ab.packs.collate import collate
from ds_stage2ab.rollout.server.backend import VllmBackend
from ds_stage2ab.runtime.ranks import World
from tests.bench.simulated_steps import Pace, servers
from tests.contract.backends import by_server, drawn, limited_bench, one_rank
from tests.parts import ROOT
from tests.unit.parts import Bench, greedy_sampling

SCENES, SEQUENCES = 192, 24
RATIO, SPARE_S = 1.10, 0.2
PACE = Pace(pass_s=0.08, row_s=0.001)  # else what the servers compute here, beside the learner, counts
SAMPLING = greedy_sampling(max_new_tokens=96, with_probabilities=True)
STEP_SAMPLES, PACK_SAMPLES, PASSES = 32, 8, 2
TURNS = 3
EVERY = load_config(ROOT / "configs" / "stage2_ab" / "prod" / "ab_mixed.yaml").config.evaluation.every_steps


@dataclass(frozen=True)
class Served:
    """Two servers with the weights of a model, and the held-out records."""

    bench: Bench
    backend: VllmBackend
    world: World
    records: list[Record]

    def evaluate(self, backend: Any) -> dict[str, float]:
        """The figures of an evaluation whose answers are of `backend`."""
        evaluator = Evaluator(
            self.records, self.bench.encoder.encode, backend, SAMPLING,
            codec=get_codec("array"), vocabulary=self.bench.vocabulary, world=self.world, pictures=Path(),
            num_pictures=0, warn=print,
        )  # fmt: skip
        return evaluator.run(0).figures


@pytest.fixture(scope="module")
def served(shipped, tmp_path_factory):
    bench = limited_bench(shipped, num_samples=SCENES)
    records = read_records(shipped.data / "train.jsonl", image_root=None, box_format="bins")[:SCENES]
    folder = tmp_path_factory.mktemp("servers")
    with servers(shipped, folder, 2, SEQUENCES, PACE) as (first, second), one_rank() as world:
        backend = by_server(bench, first, world, start_id="evaluated", more=(second,), decode_batch_size=SEQUENCES)
        backend.verify_weights(0)
        yield Served(bench, backend, world, records)


@pytest.mark.bench
def test_an_evaluation_lasts_hardly_longer_than_its_answers(served, capsys):
    """The better of two turns each, since these servers and the learner share two cores."""
    longest_first = sorted(served.bench.samples, key=lambda sample: -len(sample.objects))
    alone, scored, taken = [], [], []
    for _ in range(2):
        begun = time.perf_counter()
        rollouts = drawn(served.backend, longest_first, SAMPLING, 0)
        alone.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        for sample, rollout in zip(longest_first, rollouts, strict=True):
            served.backend.score(sample, rollout.response_ids)
        scored.append(time.perf_counter() - begun)
        taken.append(served.evaluate(served.backend)["eval/seconds"])
    taken_s, alone_s, scored_s = min(taken), min(alone), min(scored)
    with capsys.disabled():
        print(f"\nevaluation {taken_s:.2f} s; its answers alone {alone_s:.2f}, their scores alone {scored_s:.2f}")
    assert taken_s <= RATIO * max(alone_s, scored_s) + SPARE_S


class BesideAStep:
    """The backend, whose second answer is asked for behind forward and backward of an A step."""

    def __init__(self, backend: VllmBackend, learn: Callable[[], None]) -> None:
        self.backend, self.learn = backend, learn

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def generate(self, *asked: Any, **settings: Any) -> Iterator[Rollout]:
        """Its answers: those that come in the meantime wait."""
        coming = iter(self.backend.generate(*asked, **settings))
        yield next(coming)
        self.learn()
        yield from coming


@pytest.mark.bench
def test_a_step_beside_an_evaluation_saves_less_than_a_hundredth_of_a_run(served, capsys):
    """Of a run with the evaluations of the production configs."""
    segments = replace(served.bench, samples=served.bench.samples[:STEP_SAMPLES]).segments(num_passes=PASSES)
    begins = range(0, STEP_SAMPLES, PACK_SAMPLES)
    packs = [collate(segments[at : at + PACK_SAMPLES], num_passes=PASSES) for at in begins]
    objective = served.bench.objective()

    def learn() -> None:
        begun = time.perf_counter()
        for pack in packs:
            objective(pack)[0].backward()
        served.bench.model.zero_grad()
        learned.append(time.perf_counter() - begun)

    learned: list[float] = []
    apart, beside = [], []
    for _ in range(TURNS):
        begun = time.perf_counter()
        figures = [served.evaluate(served.backend)]
        learn()
        apart.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        figures.append(served.evaluate(BesideAStep(served.backend, learn)))
        beside.append(time.perf_counter() - begun)
        assert figures[0]["eval/f1"] == figures[1]["eval/f1"]
    apart_s, beside_s, step_s = mean(apart), mean(beside), mean(learned[::2])
    share = (apart_s - beside_s) / (apart_s + (EVERY - 1) * step_s)
    with capsys.disabled():
        print(
            f"\nevaluation, then forward and backward of {STEP_SAMPLES} samples ({step_s:.2f} s): {apart_s:.2f} s;"
            f" beside each other {beside_s:.2f} s: {100 * share:.2f} % of a run that evaluates every {EVERY} steps"
        )
    assert share < 0.01

"""Passes that are captured choose what the others choose; the graphs are those of `tests/fake_graph.py`, on the CPU.

A graph keeps what the host has put in, so a number of the host that reaches a pass other than through its one tensor
gives other answers here, as it would on a GPU.
"""

import gc
import random
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from weakref import ref

import numpy as np
import pytest
import torch

from ds_stage2ab.codec.text import CODECS
from ds_stage2ab.rollout.decoding import capture
from ds_stage2ab.rollout.decoding.capture import Captured, CudaGraphs
from ds_stage2ab.rollout.decoding.drafts import Drafter
from ds_stage2ab.rollout.decoding.loop import Loop
from tests.fake_graph import FakeGraphs
from tests.unit.parts import load_bench
from tests.unit.rollout.oracle import plain_answers
from tests.unit.rollout.test_token_identity import SAMPLINGS, SEED, answers, make_backend, scenes

NOT_CAPTURED = "passes of decoding are not captured, each kernel is launched by itself: "


@pytest.fixture(scope="module")
def bench(shipped):
    return load_bench(shipped, num_samples=0)


@pytest.fixture(scope="module")
def samples(bench, tmp_path_factory):
    return scenes(bench, tmp_path_factory.mktemp("scenes") / "data", 5)


@pytest.fixture(scope="module")
def expected(bench, samples):
    """What plain `generate` writes, by the name of the sampling."""
    return cache(lambda name: plain_answers(bench, samples, SAMPLINGS[name], SEED))


@pytest.fixture
def graphs(monkeypatch):
    """Each shape is captured when it comes for the second time."""
    monkeypatch.setattr(capture, "ORDINARY", 1)
    return FakeGraphs(monkeypatch.setattr)


def capturing(bench, slots, codec="array"):
    backend = make_backend(bench, slots, codec=CODECS.get(codec))
    backend.recorders = {"cpu": CudaGraphs}
    return backend


@pytest.mark.parametrize(("name", "codec"), [("drawn", "array"), ("everything", "array"), ("everything", None)])
def test_answers_are_those_of_one_prompt_at_a_time(bench, samples, expected, graphs, name, codec, recwarn):
    """The soak tier has the other samplings."""
    backend = capturing(bench, 3, codec)
    assert answers(backend, samples, SAMPLINGS[name]) == expected(name)
    assert not recwarn.list
    assert 0 < len(graphs.graphs) < sum(map(len, graphs.replays)) < backend.decoding.passes


def test_slots_that_grow_end_their_graphs(bench, samples, expected, graphs, recwarn):
    """An evaluation: samples are read when their turn comes, and slots grow."""
    asked = sorted(enumerate(samples), key=lambda one: len(one[1].prompt_ids))
    backend = capturing(bench, 2)
    with backend.current_weights(0):
        rollouts = backend.generate_lazily((sample for _, sample in asked), SAMPLINGS["everything"], finished_steps=0)
    answered = [(one.response_ids, one.finish) for one in rollouts]
    assert answered == [expected("everything")[place] for place, _ in asked]
    assert graphs.graphs and not recwarn.list


def test_probabilities(bench, samples, graphs):
    sampling = replace(SAMPLINGS["drawn"], with_probabilities=True)
    found = []
    for backend in (make_backend(bench, 3, codec=CODECS["array"]), capturing(bench, 3)):
        with backend.current_weights(0):
            found.append(backend.generate(samples, sampling, finished_steps=0))
    for one, other in zip(*found, strict=True):
        assert one.response_ids == other.response_ids
        for name in ("log_probs", "coordinate_mass"):
            values = (getattr(rollout.probabilities, name) for rollout in (one, other))
            np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-5)
    assert graphs.graphs


def test_nothing_is_left_of_a_decoding(bench, samples, graphs):
    """The graphs, and the slots, go when they are no longer needed, and not when garbage is collected."""
    backend = capturing(bench, 3)
    gc.disable()
    try:
        with backend.current_weights(0):
            backend.generate(samples, SAMPLINGS["greedy"], finished_steps=0)
            memory = ref(backend.memory)
            assert graphs.graphs and not any(graph() for graph in graphs.graphs)
            assert memory() is not None
        assert memory() is None
    finally:
        gc.enable()


def test_a_rare_shape_is_not_captured(bench, samples, expected, graphs, monkeypatch):
    monkeypatch.setattr(capture, "ORDINARY", 1000)
    assert answers(capturing(bench, 3), samples, SAMPLINGS["everything"]) == expected("everything")
    assert not graphs.graphs


# --- what a GPU may do to it: one warning, and the right answers, from the next phase on without a try -------------


def run_with(monkeypatch, change):
    """`Loop._run`, whose inputs are changed."""
    run = Loop._run
    monkeypatch.setattr(Loop, "_run", lambda loop, inputs, *rest: run(loop, change(loop, inputs), *rest))


def keeps_the_first_numbers(monkeypatch):
    """A graph that reads another tensor than the one that is written."""
    monkeypatch.setattr(Captured, "__call__", lambda graph, numbers: (graph.replay(), graph.told)[1])
    return "a graph of Shape(tokens="


def waits(monkeypatch):
    run_with(monkeypatch, lambda loop, inputs: inputs if inputs.tokens_T.tolist() else None)
    return "operation not permitted when stream is capturing: tolist"


def waits_in_an_operation(monkeypatch):
    run_with(monkeypatch, lambda loop, inputs: inputs if inputs.tokens_T.sum() >= 0 else None)
    return "operation not permitted when stream is capturing: _local_scalar_dense"


def finds_no_memory(monkeypatch):
    @contextmanager
    def full(graph, **settings):
        yield
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines")

    monkeypatch.setattr(torch.cuda, "graph", full)
    return "CUDA out of memory. Tried to allocate 2.00 GiB."


def loses_the_device(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(capture, "ORDINARY", 1)
    return "torch.cuda.Stream requires CUDA support"


@pytest.mark.parametrize(
    "fault", [keeps_the_first_numbers, waits, waits_in_an_operation, finds_no_memory, loses_the_device]
)
def test_a_capture_that_does_not_work(bench, samples, expected, graphs, monkeypatch, fault):
    words = fault(monkeypatch)
    backend = capturing(bench, 3)
    with pytest.warns(RuntimeWarning) as warned:
        found = [answers(backend, samples, SAMPLINGS["everything"]) for _ in range(2)]
    assert found == [expected("everything")] * 2
    (warning,) = warned
    assert str(warning.message).startswith(NOT_CAPTURED + words)
    assert backend.recorders == {}


def test_a_number_of_the_host_that_is_kept_is_found_here(bench, samples, expected, graphs, monkeypatch):
    """Seeds that are right whenever the work is done again: the answers above tell what the first comparison cannot."""

    def from_the_host(loop, inputs):
        seeds = [row.request.seed for row in loop.rows if row.num_cached for _ in range(len(row.draft) + 1)]
        seeds += [row.request.seed for row in loop.rows if not row.num_cached for _ in range(len(row.draft) + 1)]
        seeds += [0] * (len(inputs.seeds_N) - len(seeds))
        return replace(inputs, seeds_N=torch.tensor(seeds))

    run_with(monkeypatch, from_the_host)
    plain = make_backend(bench, 3, codec=CODECS["array"])
    assert answers(plain, samples, SAMPLINGS["drawn"]) == expected("drawn")
    assert answers(capturing(bench, 3), samples, SAMPLINGS["drawn"]) != expected("drawn")


@pytest.mark.soak
@pytest.mark.parametrize("name", ["drawn", "penalty", "everything"])
def test_many_scenes_in_any_number_of_slots(bench, name, graphs, tmp_path, monkeypatch, recwarn):
    """With drafts some of which are wrong, and of all lengths."""
    samples, rng = scenes(bench, tmp_path / "data", 64), random.Random(0)
    expected = dict(zip((s.id for s in samples), plain_answers(bench, samples, SAMPLINGS[name], SEED), strict=True))
    legal = [*{*range(bench.model.config.text_config.vocab_size)} - {*bench.vocabulary.vision_ids}]
    propose = Drafter.propose

    def some_wrong(drafter):
        right = propose(drafter)
        return right if rng.random() < 0.7 else [*right[: rng.randrange(9)], *rng.choices(legal, k=2)]

    monkeypatch.setattr(Drafter, "propose", some_wrong)
    for slots, ordinary in ((1, 0), (3, 7), (8, 2), (16, 1)):
        monkeypatch.setattr(capture, "ORDINARY", ordinary)
        rng.shuffle(samples)
        assert answers(capturing(bench, slots), samples, SAMPLINGS[name]) == [expected[one.id] for one in samples]
    assert graphs.graphs and not recwarn.list

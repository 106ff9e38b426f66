"""What every backend promises to Channel B, asked of `hf`, `vllm` and `replay` in the same words.

The server is real, and the recordings are of what `hf` has drawn.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import get_args

import pytest

from ds_stage2ab.carriers import Finish, Rollout, Sample
from ds_stage2ab.rollout.base import RolloutBackend, Sampling, request_seed
from tests.contract.backends import (
    SEED,
    TOLERANCE,
    Asked,
    by_model,
    by_recording,
    by_server,
    drawn,
    limited_bench,
    one_rank,
)
from tests.unit.parts import NO_GUARD, Bench, greedy_sampling

KINDS = ("hf", "vllm", "replay")
START_ID = "contract"
GREEDY = greedy_sampling(max_new_tokens=96)
SAMPLINGS = {
    "greedy": GREEDY,
    "drawn": replace(GREEDY, temperature=1.0),
    "nucleus": replace(GREEDY, temperature=0.8, top_p=0.9, top_k=40, repetition_penalty=1.1),
    "cut": replace(GREEDY, temperature=1.0, max_new_tokens=5),
    "guarded": replace(GREEDY, repeat_terminate=replace(NO_GUARD, max_objects=1)),
}
FIRST, SECOND, TEMPTED = 3, 4, 5  # finished steps: of two steps of the run, and of weights that no run should have


@dataclass
class Backends:
    """Each kind once for each way of sampling: a recording holds one answer to each draw."""

    bench: Bench
    make: dict[str, Callable[[Sampling], RolloutBackend]]
    made: dict[tuple[str, str], RolloutBackend] = field(default_factory=dict)
    told: dict[tuple[str, str], list] = field(default_factory=dict)

    def __call__(self, kind: str, name: str) -> RolloutBackend:
        if (kind, name) not in self.made:
            self.made[kind, name] = self.make[kind](SAMPLINGS[name])
        return self.made[kind, name]

    def rollouts(self, kind: str, name: str) -> list[tuple[int, Sequence[Sample], list[Rollout]]]:
        """(finished steps, samples, what was drawn for them) of both steps; tests look at one and the same."""
        if (kind, name) not in self.told:
            backend, sampling = self(kind, name), SAMPLINGS[name]
            self.told[kind, name] = [(*one, drawn(backend, one[1], sampling, one[0])) for one in self.asked]
        return self.told[kind, name]

    @property
    def asked(self) -> tuple[Asked, Asked]:
        """What a recording holds: half of the samples in either step."""
        half = len(self.bench.samples) // 2
        return (FIRST, self.bench.samples[:half]), (SECOND, self.bench.samples[half:])


@pytest.fixture(scope="module")
def backends(shipped, request, tmp_path_factory) -> Iterator[Backends]:
    """The model is in training mode, as the learner's is; the server starts when it is asked for first."""
    bench = limited_bench(shipped, num_samples=10)
    bench.model.train()
    with one_rank() as world:
        own = by_model(bench, world, start_id=START_ID)

        @cache
        def served() -> RolloutBackend:
            return by_server(bench, request.getfixturevalue("server").base_url, world, start_id=START_ID)

        def recorded(sampling: Sampling) -> RolloutBackend:
            folder = tmp_path_factory.mktemp("recorded")
            return by_recording(own, sampling, found.asked, folder, start_id=START_ID)

        found = Backends(bench, {"hf": lambda _: own, "vllm": lambda _: served(), "replay": recorded})
        yield found


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(params=SAMPLINGS)
def name(request) -> str:
    return request.param


def all_of(backends, kind, name) -> list[Rollout]:
    return [rollout for _, _, rollouts in backends.rollouts(kind, name) for rollout in rollouts]


def answers(rollouts) -> list:
    return [(rollout.response_ids, rollout.finish) for rollout in rollouts]


def test_one_rollout_for_each_sample_in_their_order(backends, kind, name):
    for _, samples, rollouts in backends.rollouts(kind, name):
        assert [rollout.draw for rollout in rollouts] == [sample.draw for sample in samples]
        assert [rollout.sample_id for rollout in rollouts] == [sample.id for sample in samples]
        assert [rollout.prompt_ids for rollout in rollouts] == [sample.prompt_ids for sample in samples]


def test_each_says_whose_weights_and_which_seed_wrote_it(backends, kind, name):
    """The version follows the steps; a request's seed depends on nothing but the run, the draw and the sample."""
    for steps, samples, rollouts in backends.rollouts(kind, name):
        assert {rollout.weight_version for rollout in rollouts} == {f"{START_ID}/{steps}"}
        assert [rollout.seed for rollout in rollouts] == [request_seed(SEED, s.draw, s.id) for s in samples]
        assert {rollout.source.split()[0] for rollout in rollouts} == {kind}
        assert all(rollout.seconds > 0 and rollout.attempt == 1 for rollout in rollouts)


def test_an_answer_is_ids_of_the_vocabulary_and_says_how_it_ended(backends, kind, name):
    vocabulary, sampling = backends.bench.vocabulary, SAMPLINGS[name]
    finishes = set()
    for rollout in all_of(backends, kind, name):
        finishes.add(rollout.finish)
        assert all(0 <= token < len(vocabulary.token_bytes) for token in rollout.response_ids)
        assert not {vocabulary.stop_id, *vocabulary.vision_ids} & {*rollout.response_ids}
        assert rollout.finish in get_args(Finish)
        is_full = len(rollout.response_ids) == sampling.max_new_tokens
        assert is_full if rollout.finish == "length" else not is_full
    assert {"greedy": "stop", "cut": "length", "guarded": "repeat"}.get(name, "stop") in finishes


@pytest.mark.parametrize("name", ["greedy", "guarded"])
def test_greedy_answers_are_those_of_the_model_alone(backends, kind, name):
    """One prompt at a time by the learner's own model; the guard ends them at the same token."""
    with one_rank() as world:
        alone = by_model(backends.bench, world, start_id=START_ID, decode_batch_size=1)
        expected = answers(drawn(alone, backends.bench.samples, SAMPLINGS[name], FIRST))
    assert answers(all_of(backends, kind, name)) == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize(
    "name",
    [
        *("nucleus", "guarded"),  # what a request remembers: its seed, what it has said, its objects
        *(pytest.param(name, marks=pytest.mark.soak) for name in ("greedy", "drawn", "cut")),
    ],
)
def test_an_answer_depends_on_its_request_alone(backends, kind, name):
    """Not on how often, in which order and beside whom it is asked for; all of it with one set of weights."""
    backend, sampling = backends(kind, name), SAMPLINGS[name]
    steps, samples, rollouts = backends.rollouts(kind, name)[0]
    expected = answers(rollouts)
    with backend.current_weights(steps):

        def ask(those):
            return answers(backend.generate(those, sampling, finished_steps=steps))

        assert ask(samples) == expected
        assert ask(samples[::-1]) == expected[::-1]
        assert [*ask(samples[:1]), *ask(samples[1:])] == expected
        assert ask([samples[2], samples[2], samples[0]]) == [expected[2], expected[2], expected[0]]


@pytest.mark.parametrize("name", ["drawn", "nucleus"])
def test_draws_are_those_of_the_model_alone(backends, kind, name):
    """In fp32, by any backend: the noise of a token depends on its request, its place and its id alone."""
    expected = answers(all_of(backends, "hf", name))
    assert answers(all_of(backends, kind, name)) == expected
    assert len(set(expected)) > 1


def test_a_draw_is_no_greedy_answer(backends, kind):
    """Else the test above would show nothing above temperature 0."""
    assert answers(all_of(backends, kind, "drawn")) != answers(all_of(backends, kind, "greedy"))


def test_the_sampling_record_is_one_for_all_that_draw(backends, kind):
    """Of the fields that are handed on, in `generate`'s words or in a request's; a recording was drawn before."""
    vocabulary = backends.bench.vocabulary
    for name, sampling in SAMPLINGS.items():
        record = backends(kind, name).resolved(sampling)
        if kind == "replay":
            assert record == {}
            continue
        assert record == backends("hf", name).resolved(sampling)
        assert record["temperature"] == sampling.temperature and record["max_new_tokens"] == sampling.max_new_tokens
        assert record["stop_ids"] == [vocabulary.stop_id]
        assert record["forbidden_ids"] == sorted(vocabulary.vision_ids)


def test_no_samples_are_no_rollouts(backends, kind):
    assert drawn(backends(kind, "greedy"), [], GREEDY, FIRST) == []


def test_proving_costs_nobody_anything(backends, kind):
    """Nor does proving twice: the answers are what they were."""
    backend, (steps, samples, rollouts) = backends(kind, "greedy"), backends.rollouts(kind, "greedy")[0]
    backend.verify_weights(steps)
    backend.verify_weights(steps)
    assert answers(drawn(backend, samples, GREEDY, steps)) == answers(rollouts)
    assert backend.probe_gap is None if kind != "vllm" else 0 < backend.probe_gap < TOLERANCE / 10


@pytest.mark.parametrize("name", ["nucleus", "guarded"])
def test_the_model_that_trains_is_left_as_it_was(backends, kind, name):
    model = backends.bench.model
    own_config = model.generation_config
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    backends(kind, name).verify_weights(FIRST)
    for steps, samples in backends.asked:
        drawn(backends(kind, name), samples, SAMPLINGS[name], steps)
    after = model.state_dict()
    assert model.training and all(module.training for module in model.modules())
    assert model.generation_config is own_config
    assert after.keys() == before.keys() and all(after[key].equal(tensor) for key, tensor in before.items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_what_stands_for_pixels_is_never_drawn(backends, kind, tmp_path):
    """By weights that would rather write vision tokens than anything else."""
    bench, sampling = backends.bench, SAMPLINGS["drawn"]
    asked = (TEMPTED, bench.samples[:4])
    with tempting(bench), one_rank() as world:
        unbound = by_model(replace(bench, vocabulary=replace(bench.vocabulary, vision_ids=())), world, start_id="")
        (first,) = drawn(unbound, asked[1][:1], replace(GREEDY, max_new_tokens=1), TEMPTED)
        assert {*first.response_ids} & {*bench.vocabulary.vision_ids}
        backend = backends(kind, "drawn")
        if kind == "replay":
            backend = by_recording(backends("hf", "drawn"), sampling, [asked], tmp_path, start_id=START_ID)
        rollouts = drawn(backend, asked[1], sampling, TEMPTED)
    written = {token for rollout in rollouts for token in rollout.response_ids}
    assert written and not written & {*bench.vocabulary.vision_ids}


@contextmanager
def tempting(bench: Bench) -> Iterator[None]:
    """Inside, every vision token is more probable than what an answer begins with; the tied rows say it."""
    rows = bench.model.get_input_embeddings().weight.data
    before = rows.clone()
    rows[list(bench.vocabulary.vision_ids)] = 1.5 * rows[bench.vocabulary.encode('{"')[0]]
    try:
        yield
    finally:
        rows.copy_(before)


@pytest.mark.parametrize("kind", ["hf", "vllm"])
def test_held_out_samples_are_answered_and_judged_by_the_backend_that_has_the_weights(backends, kind):
    """Evaluations count their draws downwards from -1. They are not recorded, so `replay` leaves them to these two."""
    backend, sampling = backends(kind, "greedy"), replace(GREEDY, with_probabilities=True)
    held_out = [replace(sample, draw=-1 - index) for index, sample in enumerate(backends.bench.samples[:3])]
    rollouts = drawn(backend, held_out, sampling, FIRST)
    assert [rollout.draw for rollout in rollouts] == [-1, -2, -3]
    assert [rollout.seed for rollout in rollouts] == [request_seed(SEED, s.draw, s.id) for s in held_out]
    expected = drawn(backends("hf", "greedy"), held_out, sampling, FIRST)
    for sample, rollout, wanted in zip(held_out, rollouts, expected, strict=True):
        found = backend.score(sample, rollout.response_ids) if backend.score else rollout.probabilities
        assert found.log_probs == pytest.approx(wanted.probabilities.log_probs, abs=1e-4)
        assert found.coordinate_mass == pytest.approx(wanted.probabilities.coordinate_mass, abs=1e-4)

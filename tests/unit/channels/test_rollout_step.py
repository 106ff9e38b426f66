"""A step of Channel B: all samples, their rollouts, and what is refused of them."""

from dataclasses import replace

import pytest
import torch

from ds_stage2ab.codec.text import get_codec
from ds_stage2ab.config.sections import DecodingSection
from ds_stage2ab.errors import EXIT_DATA, EXIT_ENVIRONMENT, DataError, EnvironmentFault
from ds_stage2ab.rollout.base import evaluation_sampling, training_sampling
from ds_stage2ab.runtime.timers import Clock
from tests.unit.channels.answers import CAT, DOG, GHOST, STEP, answered, segment_of
from tests.unit.parts import MATCHING, NO_GUARD, WrittenBackend, greedy_sampling


def test_segments_are_in_the_order_of_the_samples(bench):
    answers = {0: answered(bench, CAT), 1: answered(bench), 2: answered(bench, DOG, CAT), 3: answered(bench, GHOST)}
    backend, recorded = WrittenBackend(answers), []
    channel = bench.rollout_matching(backend, lambda step, rollouts: recorded.append((step, list(rollouts))))
    order = [2, 0, 3, 1]
    segments = list(channel.segments([bench.samples[draw] for draw in order], STEP, Clock()))
    assert [segment.draw for segment in segments] == order
    assert [segment.sample_id for segment in segments] == [f"train-{draw:06d}" for draw in order]
    alone = [
        next(bench.rollout_matching(backend).segments([bench.samples[draw]], STEP, Clock())).input_ids for draw in order
    ]
    assert all(torch.equal(one.input_ids, ids) for one, ids in zip(segments, alone, strict=True))
    steps, parts = zip(*recorded, strict=True)
    (step,), rollouts = {*steps}, [rollout for part in parts for rollout in part]
    assert step == STEP
    assert [(rollout.draw, rollout.response_ids) for rollout in rollouts] == [(g, tuple(answers[g])) for g in order]


def test_all_samples_are_asked_at_once_with_the_sampling_of_the_section(bench):
    backend = WrittenBackend(dict.fromkeys(range(4), answered(bench)))
    list(bench.rollout_matching(backend).segments(bench.samples, STEP, Clock()))
    wanted = greedy_sampling(temperature=0.7, top_p=0.9, top_k=50, repetition_penalty=1.1)
    assert backend.asked == [([0, 1, 2, 3], wanted, STEP)]
    assert training_sampling(MATCHING, get_codec("array")) == wanted


# --- the best of several rollouts -------------------------------------------------------------------------------------


class Several(WrittenBackend):
    """Answers by draw and place."""

    def generate(self, samples, sampling, *, finished_steps):
        self.asked.append([(sample.draw, sample.index) for sample in samples])
        for sample in samples:
            (one,) = WrittenBackend({sample.draw: self.answers[sample.draw][sample.index]}).generate(
                [sample], sampling, finished_steps=finished_steps
            )
            yield replace(one, index=sample.index)


def best_of_three(bench, backend, **changes):
    return bench.rollout_matching(backend, section=replace(MATCHING, best_of=3), **changes)


def test_the_best_of_several_rollouts_is_taught(bench):
    """Of the first scene the second answer, which finds both; of the other the first, as good as the last."""
    cat, both, ghost = (answered(bench, *said) for said in ((CAT,), (CAT, DOG), (GHOST,)))
    backend, recorded = Several({0: [cat, both, ghost], 1: [both, cat, both]}), []
    samples = bench.samples[:2]
    made = list(best_of_three(bench, backend, record=lambda step, drawn: recorded.extend(drawn)).segments(
        samples, STEP, Clock()
    ))  # fmt: skip
    assert backend.asked == [[(draw, index) for draw in (0, 1) for index in range(3)]]
    assert [(one.draw, one.index) for one in recorded] == backend.asked[0], "all are recorded"
    alone = [
        next(bench.rollout_matching(WrittenBackend({draw: both})).segments([samples[draw]], STEP, Clock()))
        for draw in (0, 1)
    ]
    for one, taught in zip(made, alone, strict=True):
        assert all(torch.equal(getattr(one, name), getattr(taught, name)) for name in ("input_ids", "weights", "bins"))
        assert one.terms["match/f1"] == taught.terms["match/f1"] == (4, 4)
    first, second = (one.terms for one in made)
    assert first["rollout/count"] == second["rollout/count"] == (3, 1)
    assert first["rollout/tokens"] == (len(cat) + len(both) + len(ghost), 1)
    assert [terms["match/not_first_rate"] for terms in (first, second)] == [(1, 1), (0, 1)]
    # 2 * 1 / (1 + 2), 1 and 0; 1, 2/3 and 1
    assert [terms["match/f1_of_all"][0] for terms in (first, second)] == pytest.approx([5 / 3, 8 / 3])
    assert first["match/f1_of_best"] == second["match/f1_of_best"] == (1, 1)


def test_a_sample_of_which_one_rollout_is_refused_is_skipped_once(bench):
    class Refusing(Several):
        def generate(self, samples, sampling, *, finished_steps):
            for one in super().generate(samples, sampling, finished_steps=finished_steps):
                yield DataError("no", fix="-") if (one.draw, one.index) == (0, 1) else one

    answers = {draw: [answered(bench, CAT)] * 3 for draw in (0, 1)}
    channel = best_of_three(bench, Refusing(answers), skip_refused=True)
    skipped, kept = channel.segments(bench.samples[:2], STEP, Clock())
    assert (skipped.draw, skipped.why) == (0, "no")
    assert (kept.draw, kept.terms["rollout/count"]) == (1, (3, 1))


def test_a_stale_rollout_among_several_is_refused_although_another_is_better(bench):
    class Mixed(Several):
        def generate(self, samples, sampling, *, finished_steps):
            for one in super().generate(samples, sampling, finished_steps=finished_steps):
                yield replace(one, weight_version="start/0") if one.index == 2 else one

    answers = {0: [answered(bench, CAT, DOG), answered(bench), answered(bench)]}
    with pytest.raises(EnvironmentFault, match="was made by the weights start/0"):
        list(best_of_three(bench, Mixed(answers)).segments(bench.samples[:1], STEP, Clock()))


def test_held_out_answers_are_drawn_by_their_own_section():
    """Whatever training does, and without its repetition penalty; the guard and the limit are the same."""
    matching = replace(MATCHING, repeat_terminate=replace(NO_GUARD, max_objects=9), max_new_tokens=77)
    decoding = DecodingSection(temperature=0.5, top_p=0.8, top_k=7)
    wanted = greedy_sampling(temperature=0.5, top_p=0.8, top_k=7, max_new_tokens=77, with_probabilities=True)
    wanted = replace(wanted, repeat_terminate=matching.repeat_terminate)
    assert evaluation_sampling(matching, decoding, get_codec("array")) == wanted
    scored = evaluation_sampling(matching, decoding, get_codec("array_scored"))
    assert scored == replace(wanted, coordinates_per_object=5)


def test_rollouts_and_matching_have_clocks_of_their_own(bench):
    clock = Clock()
    list(bench.rollout_matching(WrittenBackend({0: answered(bench)})).segments(bench.samples[:1], STEP, clock))
    assert set(clock.seconds) == {"rollout", "match"}


@pytest.mark.parametrize(
    ("backend", "version"),
    [({"steps_behind": 1}, "start/2"), ({"steps_behind": -1}, "start/4"), ({"start_id": "before"}, "before/3")],
    ids=["older", "newer", "another-start"],
)
def test_a_rollout_of_other_weights_is_refused(bench, backend, version):
    answers = {0: answered(bench)}
    recorded = []
    channel = bench.rollout_matching(WrittenBackend(answers, **backend), lambda *call: recorded.append(call))
    with pytest.raises(EnvironmentFault) as caught:
        list(channel.segments(bench.samples[:1], STEP, Clock()))
    assert caught.value.code == EXIT_ENVIRONMENT == 4
    assert caught.value.why == (
        f"the rollout of sample train-000000 was made by the weights {version}, not by the current ones, start/3"
    )
    assert caught.value.where == "written"


def test_one_stale_rollout_among_good_ones_is_found(bench):
    class Mixed(WrittenBackend):
        def generate(self, samples, sampling, *, finished_steps):
            first, second = super().generate(samples, sampling, finished_steps=finished_steps)
            return [first, replace(second, weight_version="start/0")]

    channel = bench.rollout_matching(Mixed(dict.fromkeys((0, 1), answered(bench))))
    with pytest.raises(EnvironmentFault, match=r"train-000001 was made by the weights start/0"):
        list(channel.segments(bench.samples[:2], STEP, Clock()))


def test_a_target_that_is_too_long_names_its_sample(bench):
    ids = answered(bench, GHOST)
    length = len(segment_of(bench, ids).input_ids)
    assert len(segment_of(bench, ids, max_length=length).input_ids) == length
    with pytest.raises(DataError) as caught:
        segment_of(bench, ids, max_length=length - 1)
    assert (caught.value.code, caught.value.where) == (EXIT_DATA, "train-000000")
    assert f"{length} tokens long, training.global_max_length is {length - 1}" in caught.value.why


def test_rollouts_in_another_order_are_a_mistake(bench):
    class Swapped(WrittenBackend):
        def generate(self, samples, sampling, *, finished_steps):
            return super().generate(samples, sampling, finished_steps=finished_steps)[::-1]

    channel = bench.rollout_matching(Swapped(dict.fromkeys((0, 1), answered(bench))))
    with pytest.raises(AssertionError, match="a rollout of another sample"):
        list(channel.segments(bench.samples[:2], STEP, Clock()))

"""What the recorder says of a rollout is what the model says of the same tokens in one plain forward."""

from contextlib import nullcontext

import pytest
import torch

from ds_stage2ab.engine.build import position_index
from ds_stage2ab.rollout.hf import HfBackend
from tests.unit.parts import greedy_sampling, load_bench


@pytest.fixture(scope="module")
def bench(shipped):
    return load_bench(shipped, num_samples=4)


def rollouts(bench, **changes):
    settings = {"decode_batch_size": 3, "start_id": "start", "seed": 0}
    backend = HfBackend(lambda: nullcontext(bench.model), bench.vocabulary, position_index(bench.model), **settings)
    with backend.current_weights(0):
        sampling = greedy_sampling(**{"with_probabilities": True, **changes})
        return backend.generate(bench.samples, sampling, finished_steps=0)


def scored(bench, sample, response):
    """(log-probability of each token, mass of the coordinates before it) from a teacher-forced forward."""
    ids = torch.tensor(sample.prompt_ids + response)
    with torch.no_grad():
        logits = bench.model(
            input_ids=ids[None],
            mm_token_type_ids=(ids == bench.vocabulary.image_id).int()[None],
            pixel_values=sample.vision.pixel_values,
            image_grid_thw=sample.vision.image_grid_thw,
            use_cache=False,
        ).logits[0, len(sample.prompt_ids) - 1 : -1]
    logits[:, list(bench.vocabulary.vision_ids)] = -torch.inf  # never drawn
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    drawn = log_probs.gather(1, torch.tensor(response)[:, None])[:, 0]
    return drawn, log_probs[:, list(bench.vocabulary.coordinate_ids)].exp().sum(1)


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.7, "top_p": 0.9}], ids=["greedy", "drawn"])
def test_they_are_those_of_the_models_own_distribution(bench, changes):
    for sample, rollout in zip(bench.samples, rollouts(bench, **changes), strict=True):
        drawn, mass = scored(bench, sample, rollout.response_ids)
        torch.testing.assert_close(torch.from_numpy(rollout.probabilities.log_probs), drawn, atol=1e-4, rtol=1e-4)
        found = torch.from_numpy(rollout.probabilities.coordinate_mass)
        torch.testing.assert_close(found, mass, atol=1e-4, rtol=1e-4)


def test_answers_end_with_the_stop_and_probabilities_before_it(bench):
    for rollout in rollouts(bench):
        assert rollout.finish == "stop"
        assert len(rollout.probabilities.log_probs) == len(rollout.response_ids)
        assert len(rollout.probabilities.coordinate_mass) == len(rollout.response_ids)


def test_asking_changes_no_token(bench):
    asked, plain = rollouts(bench), rollouts(bench, with_probabilities=False)
    assert [one.response_ids for one in asked] == [one.response_ids for one in plain]
    assert {one.probabilities for one in plain} == {None}

"""Greedy fp32 rollouts of the shipped checkpoint are what plain `generate` writes for one prompt at a time."""

from contextlib import nullcontext

import pytest
import torch

from ds_stage2ab.data.records import read_records
from ds_stage2ab.engine.build import position_index
from ds_stage2ab.rollout.hf import HfBackend
from ds_stage2ab.tools.digit_scenes import Layout, generate
from tests.unit.parts import greedy_sampling, load_bench

NUM_SCENES = 32
MAX_NEW_TOKENS = 160  # the longest answer, of five digits, needs about 130


@pytest.fixture(scope="module")
def bench(shipped):
    return load_bench(shipped, num_samples=1)


@pytest.fixture(scope="module")
def samples(bench, tmp_path_factory):
    """32 validation scenes of all sizes, with up to five digits."""
    folder = tmp_path_factory.mktemp("scenes") / "data"
    layout = Layout(max_digits=5, min_height=34, max_side=112)
    generate(folder, seed=1, train_scenes=1, validation_scenes=NUM_SCENES, layout=layout)
    records = read_records(folder / "validation.jsonl", image_root=None, box_format="bins")
    return [bench.encoder.encode(record, -1 - index) for index, record in enumerate(records)]


@pytest.fixture(scope="module")
def alone(bench, samples):
    """(ids, finish) by the model's own `generate`: one prompt, positions and everything else left to it."""
    answers = []
    for sample in samples:
        ids = torch.tensor(sample.prompt_ids)[None]
        output = bench.model.generate(
            input_ids=ids,
            mm_token_type_ids=(ids == bench.vocabulary.image_id).int(),
            pixel_values=sample.vision.pixel_values,
            image_grid_thw=sample.vision.image_grid_thw,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            eos_token_id=bench.vocabulary.stop_id,
            pad_token_id=bench.vocabulary.stop_id,
        )[0, ids.shape[1] :].tolist()
        stopped = output[-1] == bench.vocabulary.stop_id
        answers.append((tuple(output[:-1] if stopped else output), "stop" if stopped else "length"))
    return answers


@pytest.mark.parametrize("decode_batch_size", [1, 3, 8])
def test_rollouts_are_those_of_one_prompt_at_a_time(bench, samples, alone, decode_batch_size):
    rows = []
    hook = bench.model.model.language_model.register_forward_pre_hook(
        lambda module, arguments, named: rows.append(named["inputs_embeds"].shape[0]), with_kwargs=True
    )
    settings = {"decode_batch_size": decode_batch_size, "start_id": "start", "seed": 0}
    backend = HfBackend(lambda: nullcontext(bench.model), bench.vocabulary, position_index(bench.model), **settings)
    try:
        with backend.current_weights(0):
            rollouts = backend.generate(samples, greedy_sampling(max_new_tokens=MAX_NEW_TOKENS), finished_steps=0)
    finally:
        hook.remove()
    assert [(rollout.response_ids, rollout.finish) for rollout in rollouts] == alone
    assert max(rows) == decode_batch_size
    assert len({response for response, _ in alone}) > NUM_SCENES // 2

"""Answers with packed weights are those without; afterwards nothing is left of them."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from ds_stage2ab.engine.build import position_index
from ds_stage2ab.rollout.decoding import packed_linear
from ds_stage2ab.rollout.decoding.packed_linear import packed_linears
from ds_stage2ab.rollout.hf import HfBackend
from tests.unit.parts import greedy_sampling, load_bench


def test_a_layer_gives_the_same_for_any_number_of_rows(monkeypatch):
    monkeypatch.setattr(packed_linear, "SMALLEST", 0)
    parts = {"text": nn.Linear(48, 80), "visual": nn.Linear(48, 80), "head": nn.Linear(48, 80, bias=False)}
    model = nn.ModuleDict(parts)
    with torch.no_grad(), packed_linears(model):
        assert [name for name, layer in model.items() if "forward" in layer.__dict__] == ["text", "head"]
        for layer in (model["text"], model["head"]):
            for shape in ((48,), (1, 48), (2, 48), (1, 9, 48), (3, 1, 48)):
                rows = torch.randn(shape)
                expected = nn.functional.linear(rows, layer.weight, layer.bias)
                torch.testing.assert_close(layer(rows), expected, rtol=1e-5, atol=1e-5)
    assert all("forward" not in layer.__dict__ for layer in model.values())


@pytest.mark.parametrize(("dtype", "size"), [(torch.bfloat16, 600), (torch.float32, 100)])
def test_what_is_not_worth_it_is_left_alone(dtype, size):
    model = nn.Sequential(nn.Linear(size, size, dtype=dtype))
    with packed_linears(model):
        assert "forward" not in model[0].__dict__


def test_rollouts_with_them(shipped, monkeypatch):
    bench = load_bench(shipped, num_samples=4)
    settings = {"decode_batch_size": 2, "start_id": "start", "seed": 0}

    def answers():
        backend = HfBackend(
            lambda: nullcontext(bench.model), bench.vocabulary, position_index(bench.model), **settings
        )
        was_packed = []
        hook = bench.model.lm_head.register_forward_hook(lambda head, *_: was_packed.append("forward" in head.__dict__))
        with backend.current_weights(0):
            rollouts = backend.generate(bench.samples, greedy_sampling(max_new_tokens=96), finished_steps=0)
        hook.remove()
        return {*was_packed}, [rollout.response_ids for rollout in rollouts]

    plain = answers()
    monkeypatch.setattr(packed_linear, "SMALLEST", 0)
    assert plain[0] == {False} and answers() == ({True}, plain[1])
    assert all("forward" not in module.__dict__ for module in bench.model.modules())

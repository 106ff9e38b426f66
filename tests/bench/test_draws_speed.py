"""A draw beside transformers' warpers with noise for every id, at the size of Qwen's vocabulary."""

import statistics
import time

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from ds_stage2ab.rollout.draws import choose
from tests.unit.parts import greedy_sampling

NUM_IDS, REPEATS = 151_936, 5
SETTINGS = ({"temperature": 0.7, "top_k": 50, "top_p": 0.9}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.9})


def by_warpers(scores_BV, sampling):
    """Temperature, top k and nucleus as `generate` does them, and one uniform number for every id."""
    scores_BV = TemperatureLogitsWarper(sampling.temperature)(None, scores_BV)
    if sampling.top_k:
        scores_BV = TopKLogitsWarper(sampling.top_k)(None, scores_BV)
    if sampling.top_p < 1:
        scores_BV = TopPLogitsWarper(sampling.top_p)(None, scores_BV)
    uniform_BV = torch.rand(scores_BV.shape, dtype=torch.float64).clamp_min(1e-300)
    return (scores_BV - torch.log(-torch.log(uniform_BV)).float()).argmax(-1)


@pytest.mark.bench
@pytest.mark.parametrize("num_rows", [4, 16])
@pytest.mark.parametrize("changes", SETTINGS, ids=str)
def test_a_draw(changes, num_rows, capsys):
    """Paired: one of either in turn."""
    sampling, rows = greedy_sampling(**changes), torch.arange(num_rows)
    scores_BV = 3 * torch.randn(num_rows, NUM_IDS, generator=torch.Generator().manual_seed(0))
    ways = {
        "ours": lambda: choose(scores_BV, sampling, rows << 40, rows),
        "warpers": lambda: by_warpers(scores_BV, sampling),
    }
    seconds = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - begun)
    ours, theirs = (statistics.median(seconds[name]) for name in ("ours", "warpers"))
    with capsys.disabled():
        print(f"\n{num_rows} rows, {changes}: {ours * 1e3:.1f} ms, warpers {theirs * 1e3:.1f} ms", end="")
        print(f", ratio {theirs / ours:.1f}", end="")
    assert theirs > 1.5 * ours

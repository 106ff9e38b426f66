"""Sampling inside a greedy `generate`, one random stream per row.

The Gumbel-max trick (Gumbel 1954; Maddison et al. 2014): the argmax of log p + G, with G = -log(-log U) for
independent uniform U, is a sample from p. Each row has its own generator for U, so a request is sampled
the same whatever rows stand beside it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from ds_stage2ab.rollout.base import Sampling


def draw_processors(sampling: Sampling, seeds: Sequence[int]) -> list[LogitsProcessor]:
    """Processors that make greedy `generate` sample: temperature, top k, top p, noise. None for greedy decoding.

    Args:
        sampling: temperature, top_k and top_p act in this order.
        seeds: one for each row of the chunk.
    """
    if sampling.temperature == 0:
        return []
    processors: list[LogitsProcessor] = [TemperatureLogitsWarper(float(sampling.temperature))]
    if sampling.top_k > 0:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(float(sampling.top_p)))
    return [*processors, GumbelNoise(seeds)]


class GumbelNoise(LogitsProcessor):
    """Adds standard Gumbel noise to the scores [B, V], generated on the CPU by one generator per row.

    NumPy's generators use every bit of a seed; torch's on the CPU keeps the low 32 of it.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniform_BV = torch.stack([torch.from_numpy(one.random(scores.shape[-1])) for one in self.generators])
        noise_BV = -torch.log(-torch.log(uniform_BV.clamp_min(torch.finfo(torch.float64).tiny)))
        return scores.float() + noise_BV.to(scores.device, dtype=torch.float32)

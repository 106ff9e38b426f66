"""Sampling by counter-based noise, in plain PyTorch: what a draw means, and what runs on devices.

A draw is a pure function of its scores and of (seed, position, token id). The noise of a token is one 32-bit word of
Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), whose key is the seed and whose
counter is (token id div 4, position, 0, 0); token id mod 4 names the word. No tensor here has a shape that depends on
values, so that a device never waits for the host; on the CPU the compiled op looks at the candidates alone.

Legend: B rows, V ids of the vocabulary, K sorted scores, Q = ceil(V / 4) blocks of the generator.

Invariants:
- a draw depends on its row's scores, seed and position, not on the rows beside it
- candidates are the `top_k` largest scores, and of these the fewest that hold `top_p` of the probability at this
  temperature; scores equal to the smallest of them are candidates too
- among the candidates the draw is the largest of score / temperature + noise, of equal ones the lowest id
- noise is standard Gumbel, always finite: between -3.2 and 22.9
- a score that is NaN or -inf is never drawn where another is; a row of nothing else gives id 0
"""

import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
INCREMENTS = (0x9E3779B9, 0xBB67AE85)  # of the key, from round to round
ROUNDS = 10
WORDS = 4  # of a block
LOW = 0xFFFFFFFF


def sample_tokens(
    scores: Tensor, temperature: float, top_k: int, top_p: float, seeds: Tensor, positions: Tensor
) -> Tensor:
    """The token [B] that each row of scores [B, V] draws."""
    check_sampling(scores, temperature, top_k, top_p, seeds, positions)
    scores_BV = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    scaled_BV = scores_BV.double() / temperature
    noisy_BV = scaled_BV + gumbel_noise(seeds, positions, scores.shape[1])
    noisy_BV = noisy_BV.where(scores_BV >= _lowest_candidate(scores_BV, temperature, top_k, top_p), -torch.inf)
    ids_V = torch.arange(scores.shape[1], device=scores.device)
    return ids_V.where(noisy_BV == noisy_BV.amax(1, keepdim=True), len(ids_V)).amin(1)


def gumbel_noise(seeds: Tensor, positions: Tensor, num_ids: int) -> Tensor:
    """The noise of all ids at these places, [B, num_ids] in fp64.

    A word w becomes u = (w + 0.5) / 2^32, exact in fp64 and neither 0 nor 1, and the noise is -log(-log u) (Gumbel
    1954). In fp32 the largest values of u, which decide, would round to 1. 32 bits of a word are enough: what they
    round off is a token of probability below 2^-33.
    """
    blocks_1Q = torch.arange(-(-num_ids // WORDS), device=seeds.device)[None]
    positions_B1, seeds_B1 = positions[:, None], seeds[:, None]
    none_11 = torch.zeros_like(blocks_1Q[:, :1])
    words = philox([blocks_1Q, positions_B1 & LOW, none_11, none_11], [seeds_B1 & LOW, seeds_B1 >> 32 & LOW])
    words_BQ4 = torch.stack(words, dim=-1)
    uniform_BV = (words_BQ4.flatten(1)[:, :num_ids].double() + 0.5) * 2.0**-32
    return -torch.log(-torch.log(uniform_BV))


def philox(counter: list[Tensor], key: list[Tensor]) -> list[Tensor]:
    """The four words of Philox 4x32-10 from a counter of four and a key of two, which broadcast.

    Each is an integer of 32 bits in int64.
    """
    for round_ in range(ROUNDS):
        if round_:
            key = [(word + increment) & LOW for word, increment in zip(key, INCREMENTS, strict=True)]
        (high_0, low_0), (high_1, low_1) = (_product(counter[2 * n], MULTIPLIERS[n]) for n in range(2))
        counter = [high_1 ^ counter[1] ^ key[0], low_1, high_0 ^ counter[3] ^ key[1], low_0]
    return [*torch.broadcast_tensors(*counter)]


def check_sampling(
    scores: Tensor, temperature: float, top_k: int, top_p: float, seeds: Tensor, positions: Tensor
) -> None:
    """The sentences of `csrc/registration.cpp`, in its order."""
    if scores.dtype != torch.float32 or scores.dim() != 2 or not scores.shape[1]:
        raise ValueError("scores must be float32 with 2 axes, the second of at least one id")
    for name, tensor in {"seeds": seeds, "positions": positions}.items():
        if tensor.dtype != torch.int64 or tensor.shape != scores.shape[:1]:
            raise ValueError(f"{name} must be int64, one for each row of the scores")
    if not temperature > 0:
        raise ValueError("temperature must be above 0: greedy rows are not drawn")
    if top_k < 0 or not 0 <= top_p <= 1:
        raise ValueError("top_k must not be negative, and top_p in [0, 1]")


def _lowest_candidate(scores_BV: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """The smallest score [B, 1] that may be drawn."""
    size = scores_BV.shape[1]
    limit = min(top_k, size) if top_k else size
    if limit == size and top_p >= 1:
        return torch.full_like(scores_BV[:, :1], -torch.inf)
    sorted_BK = scores_BV.topk(limit, dim=1).values
    lowest_B1 = sorted_BK[:, -1:]
    if top_p >= 1:
        return lowest_B1
    weights_BK = ((sorted_BK.double() - sorted_BK[:, :1].double()) / temperature).exp()
    num_tied_B1 = (scores_BV >= lowest_B1).sum(1, keepdim=True) - limit  # beyond the top_k
    total_B1 = weights_BK.sum(1, keepdim=True) + num_tied_B1 * weights_BK[:, -1:]
    larger_BK = weights_BK.cumsum(1) - weights_BK  # what the larger scores hold
    inside_BK = larger_BK < top_p * total_B1
    inside_BK[:, 0] = True
    return sorted_BK.where(inside_BK, torch.inf).amin(1, keepdim=True)


def _product(words: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """The high and low 32 bits of words * multiplier.

    The product itself would overflow int64. The multiplier less 2^32 lies in (-2^30, 0), and what it lacks is the word
    itself, 32 bits higher.
    """
    product = words * (multiplier - 2**32)
    return (product >> 32) + words, product & LOW

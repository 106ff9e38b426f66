"""Scores -> the next token of each row: greedy, or a draw that depends on nothing but its own request.

The Gumbel-max trick (Gumbel 1954; Maddison et al. 2014): the argmax of log p + G, with standard Gumbel noise G for each
token, is a sample from p. The noise is a pure function of (the request's seed, the position in the answer, the token
id), so a draw depends on no batch, slot, order, rank or backend, and any place of an answer can be drawn alone.
"""

from torch import Tensor

from ds_stage2ab import ops
from ds_stage2ab.rollout.base import Sampling
from ds_stage2ab.rollout.repeat_guard import PREFIX

DRAWN_HERE = PREFIX + "drawn_here"
"""The argument of a request to a server that asks for its draws to be these."""


def choose(scores_BV: Tensor, sampling: Sampling, seeds_B: Tensor, positions_B: Tensor) -> Tensor:
    """The next token [B] of each row.

    Args:
        scores_BV: logits after the repetition penalty and with forbidden ids at -inf.
        sampling: at temperature 0 the largest score is taken; else temperature, top_k and top_p act in this order.
        seeds_B: int64, of each row's request (`base.request_seed`); not read at temperature 0.
        positions_B: int64, tokens of the answer before this one; not read at temperature 0.
    """
    if sampling.temperature == 0:
        return scores_BV.argmax(-1)
    limits = sampling.temperature, sampling.top_k, sampling.top_p
    return ops.sample_tokens(scores_BV.float(), *limits, seeds_B, positions_B)

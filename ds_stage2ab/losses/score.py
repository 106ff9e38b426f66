"""The loss of a score: the token behind a box that says how sure the model is of it.

Of the 1,000 coordinate tokens two are taught there, 999 and 0, by a soft label: with t in [0, 1] what the box turned
out to be (its IoU with the true one, or 0), and P the softmax over the whole vocabulary at the score's slot,

    -t log P(999) - (1 - t) log P(0)

A proper scoring rule (Gneiting and Raftery 2007): it is least where P(999) is the mean of t over all boxes alike, so
the probability of the token that is written says the confidence (`matching/scores.py`). A label on the bin of t itself
would not do: outcomes have two modes, a miss and a good box, and the likeliest bin does not say how often each happens.

Shapes: M slots, K = 1000 bins.
"""

from torch import Tensor

from ds_stage2ab.losses.coordinates import SlotDistribution, coordinate_of


def score_term(scores: SlotDistribution, bins_M: Tensor) -> Tensor:
    """The loss at every slot, [M].

    Args:
        scores: the predicted distributions.
        bins_M: long, 999 t of each.
    """
    t_M = coordinate_of(bins_M).to(scores.log_p_MK.dtype)
    log_p_M2 = scores.log_p_MK[:, [-1, 0]] + scores.log_mass_M[:, None]
    return -(t_M * log_p_M2[:, 0] + (1 - t_M) * log_p_M2[:, 1])

"""Loss terms on the distribution over the 1,000 coordinate tokens at one coordinate slot.

Everything is at temperature 1, and fp32 (float64 if the logits are). With p the softmax of the logits restricted to
the coordinate ids, b the target bin, c_k = k / 999 the coordinate of bin k, and q a discretised Gaussian around b:

    coord_soft_ce   -sum_k q_k log p_k                  cross entropy with a soft label
    coord_w1        sum_{k<999} |P_k - Q_k| / 999       1-Wasserstein distance in one dimension, P and Q the
                                                        cumulative sums (Vallender 1974), unit: image side
    coord_gate      -log(sum of the full softmax over the coordinate ids)
    coord_ce        -log p_b                            coord_ce + coord_gate is the ordinary cross entropy
    coord_el1       sum_k p_k |c_k - c_b|
    coord_ehuber    sum_k p_k huber_delta(c_k - c_b)    Huber 1964
    coord_entropy   -sum_k p_k log p_k                  a positive weight sharpens

Shapes: M slots, V vocabulary, K = 1000 bins.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ds_stage2ab.codec.bins import MAX_BIN, NUM_BINS
from ds_stage2ab.losses.row_blocks import by_row_blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotDistribution:
    """The predicted distribution at each coordinate slot."""

    log_p_MK: Tensor
    # log softmax over the coordinate ids alone
    log_mass_M: Tensor
    # log of the probability that the full vocabulary gives to coordinate ids; <= 0

    def split(self, num_first: int) -> "tuple[SlotDistribution, SlotDistribution]":
        """The first slots, and the others."""
        first, rest = slice(None, num_first), slice(num_first, None)
        return (
            SlotDistribution(log_p_MK=self.log_p_MK[first], log_mass_M=self.log_mass_M[first]),
            SlotDistribution(log_p_MK=self.log_p_MK[rest], log_mass_M=self.log_mass_M[rest]),
        )


def slot_distribution(logits_MV: Tensor, coordinate_ids_K: Tensor) -> SlotDistribution:
    """Split the logits at coordinate slots into a distribution over bins and the total coordinate probability."""

    def split(logits: Tensor) -> tuple[Tensor, Tensor]:
        return logits.index_select(-1, coordinate_ids_K), torch.logsumexp(logits, dim=-1)

    inside_MK, log_total_M = by_row_blocks(split, logits_MV)
    # Where nearly all mass is inside, rounding alone could make this positive.
    log_mass_M = (torch.logsumexp(inside_MK, dim=-1) - log_total_M).clamp(max=0)
    return SlotDistribution(log_p_MK=F.log_softmax(inside_MK, dim=-1), log_mass_M=log_mass_M)


def coordinate_of(bins: Tensor) -> Tensor:
    """c = k / 999 in fp32, the fraction of the image side."""
    return bins.float() / MAX_BIN


def expected_coordinate(log_p_MK: Tensor) -> Tensor:
    """c_hat = sum_k p_k k / 999, shape [M], in [0, 1]."""
    return log_p_MK.exp() @ coordinate_of(torch.arange(NUM_BINS, device=log_p_MK.device)).to(log_p_MK.dtype)


def soft_target(bins_M: Tensor, sigma: float) -> Tensor:
    """Gaussian of standard deviation `sigma` bins around each target, normalised over the 1,000 bins: [M, K]."""
    k_K = torch.arange(NUM_BINS, device=bins_M.device, dtype=torch.float32)
    return torch.softmax(-0.5 * ((k_K - bins_M.float()[:, None]) / sigma) ** 2, dim=-1)


def coordinate_terms(slots: SlotDistribution, bins_M: Tensor, *, sigma: float, huber_delta: float) -> dict[str, Tensor]:
    """Every coordinate term at every slot, each of shape [M], by the names in the module's table.

    Args:
        slots: the predicted distributions.
        bins_M: long, the target bins.
        sigma: standard deviation of the soft label, in bins.
        huber_delta: where Huber turns linear, as a fraction of the image side.
    """
    log_p_MK = slots.log_p_MK
    target_MK = soft_target(bins_M, sigma).to(log_p_MK.dtype)
    p_MK = log_p_MK.exp()
    gap_MK = coordinate_of(torch.arange(NUM_BINS, device=bins_M.device)) - coordinate_of(bins_M)[:, None]
    gap_MK = gap_MK.to(log_p_MK.dtype)
    cdf_gap_MK = (p_MK - target_MK).cumsum(-1)[:, :-1]
    huber_MK = F.huber_loss(gap_MK, torch.zeros_like(gap_MK), reduction="none", delta=huber_delta)
    return {
        "coord_soft_ce": -(target_MK * log_p_MK).sum(-1),
        "coord_w1": cdf_gap_MK.abs().sum(-1) / MAX_BIN,
        "coord_gate": -slots.log_mass_M,
        "coord_ce": F.nll_loss(log_p_MK, bins_M, reduction="none"),
        "coord_el1": (p_MK * gap_MK.abs()).sum(-1),
        "coord_ehuber": (p_MK * huber_MK).sum(-1),
        "coord_entropy": -(p_MK * log_p_MK).sum(-1),
    }

"""Cross entropy over supervised tokens, one mean per sample.

Shapes: M supervised tokens of a pack, V vocabulary, S samples (segments) of the pack.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ds_stage2ab.losses.row_blocks import by_row_blocks


def token_cross_entropy(logits_MV: Tensor, targets_M: Tensor) -> Tensor:
    """-log softmax(logits)[target] in fp32 (float64 if the logits are), shape [M], unit nat."""
    (ce_M,) = by_row_blocks(_cross_entropy, logits_MV, targets_M)
    return ce_M


def _cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor]:
    return (F.cross_entropy(logits, targets, reduction="none"),)


def weighted_sample_mean(values_M: Tensor, weights_M: Tensor, sample_of_M: Tensor, num_samples: int) -> Tensor:
    """sum(w v) / sum(w) for each sample, shape [S]; exactly zero for a sample without weight.

    Args:
        values_M: one value per supervised position.
        weights_M: its weight, >= 0.
        sample_of_M: long, which sample the position belongs to.
        num_samples: S.
    """
    zeros = torch.zeros(num_samples, dtype=values_M.dtype, device=values_M.device)
    total = zeros.index_add(0, sample_of_M, values_M * weights_M)
    weight = zeros.index_add(0, sample_of_M, weights_M.to(values_M.dtype))
    return total / torch.where(weight > 0, weight, torch.ones_like(weight))

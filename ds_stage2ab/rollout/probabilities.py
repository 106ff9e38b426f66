"""Records the probabilities of generated tokens while `generate` runs; keeps one row of scores at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor


class ProbabilityRecorder(LogitsProcessor):
    """Changes nothing; must come before the processors that sample, so that it sees the model's own distribution.

    Args:
        coordinate_ids: [1000] on the scores' device.
    """

    def __init__(self, coordinate_ids: Tensor) -> None:
        self.coordinate_ids = coordinate_ids
        self.previous_BV: Tensor | None = None  # log-probabilities of the token that is sampled next
        self.log_probs: list[Tensor] = []  # of each sampled token, [B] each
        self.masses: list[Tensor] = []  # of all coordinate tokens at each position, [B] each

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._note(input_ids[:, -1])
        self.previous_BV = torch.log_softmax(scores.float(), dim=-1)
        self.masses.append(self.previous_BV[:, self.coordinate_ids].exp().sum(1))
        return scores

    def _note(self, drawn_B: Tensor) -> None:
        if self.previous_BV is not None:
            self.log_probs.append(self.previous_BV.gather(1, drawn_B[:, None])[:, 0])

    def result(self, output_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(log-probabilities, coordinate masses), [B, L] each, of the L tokens that were generated.

        Args:
            output_ids: [B, prompt + L] what `generate` returned.
        """
        self._note(output_ids[:, -1])
        self.previous_BV = None
        return torch.stack(self.log_probs, dim=1).cpu(), torch.stack(self.masses, dim=1).cpu()

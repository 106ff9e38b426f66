"""Logits of a pass -> the tokens that are chosen, and their probabilities.

Legend: N places after which a token is chosen, V ids of the vocabulary, R rows, W columns of a slot.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from ds_stage2ab.rollout.base import Sampling
from ds_stage2ab.rollout.decoding.attention import widened
from ds_stage2ab.rollout.decoding.passes import PassInputs
from ds_stage2ab.rollout.draws import choose


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Of each place of a pass, on the host."""

    ids: list[int]
    is_finite: list[bool]
    # whether the logits of the place were
    log_probs: list[float] | None
    masses: list[float] | None
    # of the chosen id, and of all coordinates; None where they are not recorded


class Chooser:
    """Chooses tokens as `generate` does with these parameters.

    Args:
        sampling: the decoding parameters.
        forbidden_ids: never chosen.
        coordinate_ids: whose probability is summed up.
        num_slots, width: of the slots.
        device: of the model.
    """

    def __init__(
        self,
        sampling: Sampling,
        *,
        forbidden_ids: tuple[int, ...],
        coordinate_ids: tuple[int, ...],
        num_slots: int,
        width: int,
        device: torch.device,
    ) -> None:
        self.sampling = sampling
        self.forbidden = torch.tensor(forbidden_ids, dtype=torch.long, device=device)
        self.coordinates = torch.tensor(coordinate_ids, device=device)
        self.penalty = None
        if sampling.repetition_penalty != 1:
            self.penalty = RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty))
        self.num_slots = num_slots
        self.written = torch.zeros(num_slots * width + 1, dtype=torch.long, device=device)
        # the tokens of each slot, for the penalty, in lines as those of `SlotMemory`

    @property
    def written_RW(self) -> Tensor:
        return self.written[:-1].view(self.num_slots, -1)

    def __call__(self, logits_NV: Tensor, inputs: PassInputs) -> Tensor:
        """What `read` understands, [2 or 4, N] in fp64, which holds an id exactly; on the device, and so far unread."""
        scores_NV = logits_NV.to(torch.float32, copy=True)
        # a logit that is not finite makes the sum so; finite ones of fp32 are too small to
        sums_N = scores_NV.sum(1)
        if self.penalty is not None:
            scores_NV = self.penalty(self._before(inputs), scores_NV)
        scores_NV = scores_NV.index_fill_(1, self.forbidden, -torch.inf)
        log_NV = torch.log_softmax(scores_NV, dim=-1) if self.sampling.with_probabilities else None
        ids_N = choose(scores_NV, self.sampling, inputs.seeds_N, inputs.indices_N)
        told = [ids_N, sums_N]
        if log_NV is not None:
            told += [log_NV.gather(1, ids_N[:, None])[:, 0], log_NV[:, self.coordinates].exp().sum(1)]
        return torch.stack([one.double() for one in told])

    def _before(self, inputs: PassInputs) -> Tensor:
        """The tokens before each place, [N, C]; a shorter row repeats its first, which counts no more than once."""
        self.written.index_copy_(0, inputs.slots.lines_T, inputs.tokens_T)
        columns = torch.arange(inputs.most_columns, device=self.written.device)
        written_NC = self.written_RW[inputs.slot_N][:, : len(columns)]
        return torch.where(columns < inputs.num_columns_N[:, None], written_NC, written_NC[:, :1])

    def widen(self, width: int) -> None:
        """As `SlotMemory.widen` does."""
        self.written = widened(self.written, self.num_slots, width)

    def move(self, source: int, destination: int) -> None:
        """As `SlotMemory.move` does."""
        self.written_RW[destination] = self.written_RW[source]


def read(told: Tensor) -> Chosen:
    """What a chooser tells; the one time that the host waits for the device in a pass."""
    ids, sums, *recorded = told.tolist()
    log_probs, masses = recorded or (None, None)
    finite = [one - one == 0 for one in sums]
    return Chosen(ids=[int(one) for one in ids], is_finite=finite, log_probs=log_probs, masses=masses)

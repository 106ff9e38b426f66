"""Ends an answer that repeats itself: three rules on the ids so far, as batched tensor operations.

The rules are the same in every backend; here they run inside `generate`, as the last logits processor, which leaves a
row that broke one no token but the stop. A rule whose limit is None is off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

import torch
from torch import Tensor
from transformers import LogitsProcessor

from ds_stage2ab.config.sections import RepeatTerminateSection

COORDINATES_PER_OBJECT = 4


def repeats(generated_BL: Tensor, coordinate_ids: Tensor, limits: RepeatTerminateSection) -> Tensor:
    """Whether each answer breaks a rule with its last token, [B].

    Args:
        generated_BL: the ids so far, without the prompt, none of them a stop.
        coordinate_ids: [1000] the coordinate tokens.
        limits: `max_token_run` equal tokens at the end; a last `ngram_size` tokens that occur `max_ngram_repeats`
            times, overlapping ones counted; coordinates of more than `max_objects` objects.
    """
    length = generated_BL.shape[1]
    broken_B = torch.zeros(len(generated_BL), dtype=torch.bool, device=generated_BL.device)
    run, size, times = limits.max_token_run, limits.ngram_size, limits.max_ngram_repeats
    if run is not None and length >= run:
        broken_B |= (generated_BL[:, -run:] == generated_BL[:, -1:]).all(1)
    if size is not None and length >= size:
        windows_BWN = generated_BL.unfold(1, size, 1)
        broken_B |= (windows_BWN == windows_BWN[:, -1:]).all(2).sum(1) >= times
    if limits.max_objects is not None:
        broken_B |= torch.isin(generated_BL, coordinate_ids).sum(1) > COORDINATES_PER_OBJECT * limits.max_objects
    return broken_B


def first_repeat(response_ids: Sequence[int], coordinate_ids: Tensor, limits: RepeatTerminateSection) -> int | None:
    """How many tokens of a whole answer stand when it first breaks a rule; None if it never does."""
    if all(limit is None for limit in astuple(limits)):
        return None
    ids_1L = torch.tensor([response_ids], dtype=torch.long)
    ends = range(1, ids_1L.shape[1] + 1)
    return next((end for end in ends if bool(repeats(ids_1L[:, :end], coordinate_ids, limits))), None)


class RepeatGuard(LogitsProcessor):
    """Forces the stop on rows that break a rule, and remembers which.

    Args:
        limits: which rules.
        prompt_width: columns of the padded prompts, which the rules do not see.
        stop_id: ends a row.
        coordinate_ids: [1000] on the scores' device.
    """

    def __init__(self, limits: RepeatTerminateSection, *, prompt_width: int, stop_id: int, coordinate_ids: Tensor):
        self.limits = limits
        self.prompt_width = prompt_width
        self.stop_id = stop_id
        self.coordinate_ids = coordinate_ids
        self.triggered_B: Tensor | None = None

    @property
    def is_on(self) -> bool:
        """Whether there is any rule."""
        return any(limit is not None for limit in astuple(self.limits))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        generated_BL = input_ids[:, self.prompt_width :]
        alive_B = (generated_BL != self.stop_id).all(1)
        ended_B = alive_B & repeats(generated_BL, self.coordinate_ids, self.limits)
        self.triggered_B = ended_B if self.triggered_B is None else self.triggered_B | ended_B
        forced_BV = torch.full_like(scores, -torch.inf)
        forced_BV[:, self.stop_id] = 0
        return torch.where(ended_B[:, None], forced_BV, scores)

    def ended(self, num_rows: int) -> list[bool]:
        """Which rows were ended."""
        return [False] * num_rows if self.triggered_B is None else self.triggered_B.tolist()

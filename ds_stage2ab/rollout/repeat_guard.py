"""Ends an answer that repeats itself: three rules on the ids so far. A rule whose limit is None is off.

The rules are the same in every backend and stand here twice: `repeats` looks at whole rows, as batched tensor
operations, `IncrementalDetector` follows one answer token by token. The learner's own rollouts end by the second; a
vLLM server uses either (`vllm_guard`), and what comes from a server is looked at by the second once more, so that a
server without the guard gives the same answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ds_stage2ab.config.sections import RepeatTerminateSection


def repeats(
    generated_BL: Tensor, coordinate_ids: Tensor, limits: RepeatTerminateSection, per_object: int
) -> Tensor:
    """Whether each answer breaks a rule with its last token, [B].

    Args:
        generated_BL: the ids so far, without the prompt, none of them a stop.
        coordinate_ids: [1000] the coordinate tokens.
        limits: `max_token_run` equal tokens at the end; a last `ngram_size` tokens that occur `max_ngram_repeats`
            times, overlapping ones counted; coordinates of more than `max_objects` objects.
        per_object: coordinate tokens of an object, its score included.
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
        broken_B |= torch.isin(generated_BL, coordinate_ids).sum(1) > per_object * limits.max_objects
    return broken_B


class IncrementalDetector:
    """The same rules on one answer as it grows; each token costs the same, however long the answer is.

    Args:
        limits: as those of `repeats`.
        coordinate_ids: the coordinate tokens.
        per_object: how many of them an object has.
    """

    def __init__(self, limits: RepeatTerminateSection, coordinate_ids: Container[int], per_object: int) -> None:
        self.per_object = per_object
        self.limits = limits
        self.coordinate_ids = coordinate_ids
        self.ids: list[int] = []
        self.run = 0
        # equal tokens at the end
        self.ngrams: Counter[tuple[int, ...]] = Counter()
        self.num_coordinates = 0
        self.is_broken = False
        # whether the last token broke a rule

    def read(self, tokens: Iterable[int]) -> bool:
        """Take the next tokens, none of them a stop, up to one that breaks a rule; whether one did."""
        for token in tokens:
            if self.is_broken:
                break
            self.is_broken = self._take(token)
        return self.is_broken

    def _take(self, token: int) -> bool:
        limits, size = self.limits, self.limits.ngram_size
        self.run = self.run + 1 if self.ids[-1:] == [token] else 1
        self.num_coordinates += token in self.coordinate_ids
        self.ids.append(token)
        broken = limits.max_token_run is not None and self.run >= limits.max_token_run
        if size is not None and len(self.ids) >= size:
            last = tuple(self.ids[-size:])
            self.ngrams[last] += 1
            broken |= self.ngrams[last] >= limits.max_ngram_repeats
        if limits.max_objects is not None:
            broken |= self.num_coordinates > self.per_object * limits.max_objects
        return broken


def has_rules(limits: RepeatTerminateSection) -> bool:
    """Whether any rule is on."""
    return any(limit is not None for limit in astuple(limits))


def first_repeat(
    response_ids: Sequence[int], coordinate_ids: Container[int], limits: RepeatTerminateSection, per_object: int
) -> int | None:
    """How many tokens of a whole answer stand when it first breaks a rule; None if it never does."""
    if not has_rules(limits):
        return None
    detector = IncrementalDetector(limits, coordinate_ids, per_object)
    return len(detector.ids) if detector.read(response_ids) else None


PREFIX = "ds_stage2ab_"
"""Of the arguments of a request that a server's guard reads: other extensions of vLLM have theirs beside them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardParams:
    """What a server's guard must know of one request."""

    limits: RepeatTerminateSection
    stop_id: int
    coordinate_ids: tuple[int, ...]
    per_object: int
    # coordinate tokens of an object

    def detector(self) -> IncrementalDetector:
        return IncrementalDetector(self.limits, frozenset(self.coordinate_ids), self.per_object)

    def arguments(self) -> dict[str, int | list[int]]:
        """As a request carries them, in `vllm_xargs`, which takes numbers and lists of numbers."""
        given = {**asdict(self.limits), "stop_id": self.stop_id, "per_object": self.per_object}
        given["coordinate_ids"] = list(self.coordinate_ids)
        return {PREFIX + name: value for name, value in given.items() if value is not None}

    @classmethod
    def read(cls, arguments: Mapping[str, Any] | None) -> GuardParams | None:
        """Those of a request; None if it has none."""
        if not arguments or PREFIX + "stop_id" not in arguments:
            return None
        limits = {field.name: arguments.get(PREFIX + field.name) for field in fields(RepeatTerminateSection)}
        return cls(
            limits=RepeatTerminateSection(**limits),
            stop_id=arguments[PREFIX + "stop_id"],
            coordinate_ids=tuple(arguments[PREFIX + "coordinate_ids"]),
            per_object=arguments[PREFIX + "per_object"],
        )

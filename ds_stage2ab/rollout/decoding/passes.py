"""Rows -> the tensors of their next pass: tokens of answers first, then whole prompts, back to back in one row.

Legend: T tokens of a pass, N places after which a token is chosen, R rows, Q queries of a row at most, C columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ds_stage2ab.rollout.decoding.attention import SlotMemory, SlotPass
from ds_stage2ab.rollout.decoding.rows import Row


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PassInputs:
    """What the model is given, and where tokens are chosen."""

    tokens_T: Tensor
    position_ids: Tensor
    # [3, 1, T]
    slots: SlotPass
    order: list[int]
    # the slots of all rows, as their tokens stand in the pass
    new: list[int]
    # the last of them: those with a prompt in the pass
    picked_N: Tensor
    # tokens after which one is chosen: of each row its last before the draft, and those of the draft
    slot_N: Tensor
    num_columns_N: Tensor
    # of the slot up to the picked token
    most_columns: int
    # of them
    seeds_N: Tensor
    indices_N: Tensor
    # of the chosen token in its answer


@dataclass(slots=True, kw_only=True)
class _Numbers:
    """All integers of a pass, on the host; they are sent together. Named as in `PassInputs` and `SlotPass`."""

    width: int
    # of a slot
    tokens: list[int] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    # of the tokens of answers
    first: list[int] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)
    # of them: the first line of the slot, and the columns of it
    picked: list[int] = field(default_factory=list)
    slot: list[int] = field(default_factory=list)
    num_columns: list[int] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    visible: list[int] = field(default_factory=list)
    # [R * Q] columns that each query sees
    gather: list[int] = field(default_factory=list)
    scatter: list[int] = field(default_factory=list)

    def add(self, slot: int, row: Row) -> None:
        """The tokens of the next row."""
        fed, first, num_picked = row.fed(), row.num_cached, len(row.draft) + 1
        last = first + len(fed)
        self.tokens += fed
        self.lines += range(slot * self.width + first, slot * self.width + last)
        if first:
            self.positions += range(row.offset + first, row.offset + last)
            self.first += [slot * self.width] * len(fed)
            self.seen += range(first + 1, last + 1)
        self.picked += range(len(self.tokens) - num_picked, len(self.tokens))
        self.slot += [slot] * num_picked
        self.num_columns += range(last - num_picked + 1, last + 1)
        self.seeds += [row.request.seed] * num_picked
        self.indices += range(len(row.ids), len(row.ids) + num_picked)

    def add_queries(self, rows: Sequence[Row], num_queries: int) -> None:
        """What each row asks its slot; a query that no token asks sees one column, and nobody reads its answer."""
        asked = 0
        for slot, row in enumerate(rows):
            num = len(row.draft) + 1 if row.num_cached else 0
            self.visible += [*range(row.num_cached + 1, row.num_cached + num + 1), *[1] * (num_queries - num)]
            self.gather += [*range(asked, asked + num), *[0] * (num_queries - num)]
            self.scatter += range(slot * num_queries, slot * num_queries + num)
            asked += num

    def sent(self, device: torch.device) -> dict[str, Tensor]:
        names = [name for name in self.__slots__ if name != "width"]
        parts = [getattr(self, name) for name in names]
        whole = torch.tensor([number for part in parts for number in part]).to(device)
        return dict(zip(names, whole.split([len(part) for part in parts]), strict=True))


def make_pass(
    rows: Sequence[Row], memory: SlotMemory, *, device: torch.device, dtype: torch.dtype, heads_per_key: int
) -> PassInputs:
    """The next pass of all rows, of which row s has slot s.

    Args:
        dtype: of the model.
        heads_per_key: query heads that share a key head.
    """
    answering = [slot for slot, row in enumerate(rows) if row.num_cached]
    new = [slot for slot, row in enumerate(rows) if not row.num_cached]
    numbers = _Numbers(width=memory.width)
    for slot in (*answering, *new):
        numbers.add(slot, rows[slot])
    # elsewhere no op takes each row as far as it reaches
    is_padded = bool(answering) and not (device.type == "cpu" and dtype == torch.float32)
    if is_padded:
        numbers.add_queries(rows, max(len(rows[slot].draft) + 1 for slot in answering))
    sent = numbers.sent(device)
    columns = max(numbers.seen, default=0)
    is_plain = len(numbers.visible) == len(rows) == len(answering)
    slots = SlotPass(
        memory=memory,
        lines_T=sent["lines"],
        num_answering=len(numbers.positions),
        prompts=[len(rows[slot].fed()) for slot in new],
        num_rows=len(rows),
        columns=columns,
        first_T=sent["first"],
        seen_T=sent["seen"],
        mask=_mask(sent["visible"].view(len(rows), -1), columns, dtype, heads_per_key) if is_padded else None,
        gather=None if is_plain else sent["gather"],
        scatter=None if is_plain else sent["scatter"],
    )
    chosen = {f"{name}_N": sent[name] for name in ("picked", "slot", "num_columns", "seeds", "indices")}
    positions = _positions([rows[slot] for slot in new], sent["positions"])
    tokens = {"tokens_T": sent["tokens"], "position_ids": positions}
    most = max(numbers.num_columns)
    return PassInputs(**tokens, **chosen, most_columns=most, slots=slots, order=[*answering, *new], new=new)


def _mask(visible_RQ: Tensor, columns: int, dtype: torch.dtype, heads_per_key: int) -> Tensor:
    """[R, 1, Q, C], or [R, 1, G * Q, C] where a row has several queries: 0 on what a query sees, minus infinity off."""
    hidden_RQC = torch.arange(columns, device=visible_RQ.device) >= visible_RQ[:, :, None]
    mask_RQC = torch.zeros(hidden_RQC.shape, dtype=dtype, device=visible_RQ.device).masked_fill_(hidden_RQC, -torch.inf)
    if visible_RQ.shape[1] > 1:
        mask_RQC = mask_RQC.repeat(1, heads_per_key, 1)
    return mask_RQC[:, None]


def _positions(new: Sequence[Row], answering_T: Tensor) -> Tensor:
    """[3, 1, T]: the three are one number after a prompt."""
    parts = [answering_T.expand(3, -1)]
    for row in new:
        length = len(row.request.prompt)
        drafted = row.offset + length + torch.arange(len(row.draft))
        parts.append(torch.cat([row.request.position_ids, drafted.expand(3, -1)], dim=1).to(answering_T.device))
    return torch.cat(parts, dim=1)[:, None]

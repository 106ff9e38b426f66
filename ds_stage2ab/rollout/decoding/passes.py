"""Rows -> the tensors of their next pass: tokens of answers first, then whole prompts, back to back in one row.

Legend: T tokens of a pass, N places after which a token is chosen, R rows, Q queries of a row at most, C columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

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
class Numbers:
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

    def whole(self) -> Tensor:
        """One after the other, on the host."""
        return torch.tensor([number for name in NAMES for number in getattr(self, name)])

    def sent(self, device: torch.device) -> dict[str, Tensor]:
        return by_name(self.whole().to(device), {name: len(getattr(self, name)) for name in NAMES})


NAMES = tuple(one.name for one in fields(Numbers) if one.name != "width")


def by_name(whole: Tensor, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """What `Numbers.whole` has put together."""
    return dict(zip(NAMES, whole.split([sizes[name] for name in NAMES]), strict=True))


def make_pass(
    rows: Sequence[Row], memory: SlotMemory, *, device: torch.device, dtype: torch.dtype, heads_per_key: int
) -> PassInputs:
    """The next pass of all rows, of which row s has slot s: tokens of answers in the order of the slots, then prompts.

    Args:
        dtype: of the model.
        heads_per_key: query heads that share a key head.
    """
    answering = [slot for slot, row in enumerate(rows) if row.num_cached]
    new = [slot for slot, row in enumerate(rows) if not row.num_cached]
    numbers = Numbers(width=memory.width)
    for slot in (*answering, *new):
        numbers.add(slot, rows[slot])
    # elsewhere no op takes each row as far as it reaches
    is_padded = bool(answering) and not (device.type == "cpu" and dtype == torch.float32)
    if is_padded:
        numbers.add_queries(rows, max(len(rows[slot].draft) + 1 for slot in answering))
    fits = len(numbers.visible) == len(rows) == len(answering)
    host = HostNumbers(
        num_rows=len(rows),
        columns=max(numbers.seen, default=0),
        most_columns=max(numbers.num_columns),
        is_padded=is_padded,
        is_gathered=is_padded and not fits,
    )
    return inputs_of(numbers.sent(device), host, memory, [rows[slot] for slot in new], dtype, heads_per_key)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostNumbers:
    """What the host must know of a pass; named as in `PassInputs` and `SlotPass`."""

    num_rows: int
    columns: int
    most_columns: int
    is_padded: bool
    # whether all rows are read as far as the longest
    is_gathered: bool
    # whether a query is not simply the token of its row


def inputs_of(
    sent: Mapping[str, Tensor],
    host: HostNumbers,
    memory: SlotMemory,
    new: Sequence[Row],
    dtype: torch.dtype,
    heads_per_key: int,
) -> PassInputs:
    """Args: sent: the numbers of a pass; new: the rows with prompts in it."""
    mask = None
    if host.is_padded:
        mask = _mask(sent["visible"].view(host.num_rows, -1), host.columns, dtype, heads_per_key)
    slots = SlotPass(
        memory=memory,
        lines_T=sent["lines"],
        num_answering=len(sent["positions"]),
        prompts=[len(row.fed()) for row in new],
        num_rows=host.num_rows,
        columns=host.columns,
        first_T=sent["first"],
        seen_T=sent["seen"],
        mask=mask,
        gather=sent["gather"] if host.is_gathered else None,
        scatter=sent["scatter"] if host.is_gathered else None,
    )
    chosen = {f"{name}_N": sent[name] for name in ("picked", "slot", "num_columns", "seeds", "indices")}
    tokens = {"tokens_T": sent["tokens"], "position_ids": _positions(new, sent["positions"])}
    return PassInputs(**tokens, **chosen, most_columns=host.most_columns, slots=slots)


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

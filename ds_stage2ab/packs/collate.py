"""Segments -> Pack: back to back, batch size 1, nothing padded."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from ds_stage2ab.carriers import Pack, Segment, Vision
from ds_stage2ab.errors import NoServerLeft
from ds_stage2ab.packs.binpack import pack_lengths
from ds_stage2ab.packs.online import MAX_OPEN, pack_online


def make_packs(
    segments: Iterable[Segment | NoServerLeft], *, capacity: int, packing: bool, online: bool, num_passes: int
) -> Iterator[tuple[Pack, bool] | NoServerLeft]:
    """Pack a rank's segments of one step, a function of their order and lengths alone.

    Args:
        segments: in draw order, none longer than `capacity`; may block for the next one.
        capacity: `training.global_max_length`, tokens.
        packing: False gives one segment per pack.
        online: pack while segments arrive; else collect all of them first, which makes fewer packs.
        num_passes: forward passes of the expectation loop.

    Yields: (pack, whether it is the rank's last); online, a NoServerLeft among the segments at once.
    """
    if online:
        # Without packing each segment fills a pack, which is yielded when the next segment arrives.
        room, max_open = (_length, MAX_OPEN) if packing else (lambda segment: capacity, 1)
        groups = pack_online(segments, room, capacity, max_open=max_open)
    else:
        groups = _pack_offline(list(segments), capacity, packing)
    for group in groups:
        if isinstance(group, NoServerLeft):
            yield group
            continue
        members, last = group
        yield collate(members, num_passes=num_passes), last


def _pack_offline(segments: list[Segment], capacity: int, packing: bool) -> Iterator[tuple[list[Segment], bool]]:
    bins = pack_lengths(list(map(_length, segments)), capacity) if packing else [[n] for n in range(len(segments))]
    for place, members in enumerate(bins):
        yield [segments[index] for index in members], place == len(bins) - 1


def _length(segment: Segment) -> int:
    return len(segment.input_ids)


def collate(segments: list[Segment], *, num_passes: int) -> Pack:
    """Concatenate segments along the token axis; slots are shifted to positions in the pack."""
    lengths = [len(segment.input_ids) for segment in segments]
    offsets = [0]
    for length in lengths:
        offsets.append(offsets[-1] + length)
    position_ids = torch.cat([segment.position_ids for segment in segments], dim=1)
    assert position_ids.shape == (4, offsets[-1]), "packed attention needs the text row and three vision rows"
    return Pack(
        input_ids=torch.cat([segment.input_ids for segment in segments]),
        position_ids=position_ids,
        vision=Vision(
            pixel_values=torch.cat([segment.vision.pixel_values for segment in segments]),
            image_grid_thw=torch.cat([segment.vision.image_grid_thw for segment in segments]),
        ),
        weights=torch.cat([segment.weights for segment in segments]),
        is_desc=torch.cat([segment.is_desc for segment in segments]),
        slots=_shifted([segment.slots for segment in segments], offsets),
        bins=torch.cat([segment.bins for segment in segments]),
        score_slots=_shifted([segment.score_slots for segment in segments], offsets),
        score_bins=torch.cat([segment.score_bins for segment in segments]),
        segment_of=torch.repeat_interleave(torch.arange(len(segments)), torch.tensor(lengths)),
        boundaries=tuple(offsets),
        sample_ids=tuple(segment.sample_id for segment in segments),
        num_passes=num_passes,
        real=True,
    )


def _shifted(positions: list[torch.Tensor], offsets: list[int]) -> torch.Tensor:
    """Positions in segments as positions in the pack."""
    return torch.cat([part + start for part, start in zip(positions, offsets, strict=False)])


def dummy_pack(segment: Segment, *, num_passes: int) -> Pack:
    """A dummy pack: it runs through every module and loss term, and contributes exactly zero."""
    return replace(collate([segment], num_passes=num_passes), real=False)

"""Segments -> Pack: back to back, batch size 1, nothing padded."""

from dataclasses import replace

import torch

from ds_stage2ab.carriers import Pack, Segment, Vision
from ds_stage2ab.packs.binpack import pack_lengths


def make_packs(segments: list[Segment], *, capacity: int, packing: bool, num_passes: int) -> list[Pack]:
    """Pack a rank's segments of one step, a function of their order and lengths alone.

    Args:
        segments: in draw order, none longer than `capacity`.
        capacity: `training.global_max_length`, tokens.
        packing: False gives one segment per pack.
        num_passes: forward passes of the expectation loop.
    """
    lengths = [len(segment.input_ids) for segment in segments]
    bins = pack_lengths(lengths, capacity) if packing else [[index] for index in range(len(segments))]
    return [collate([segments[index] for index in members], num_passes=num_passes) for members in bins]


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
        slots=torch.cat([segment.slots + start for segment, start in zip(segments, offsets, strict=False)]),
        bins=torch.cat([segment.bins for segment in segments]),
        segment_of=torch.repeat_interleave(torch.arange(len(segments)), torch.tensor(lengths)),
        boundaries=tuple(offsets),
        sample_ids=tuple(segment.sample_id for segment in segments),
        num_passes=num_passes,
        real=True,
    )


def zero_weight(segment: Segment, *, num_passes: int) -> Pack:
    """A pack that runs through every module and loss term and contributes exactly nothing."""
    return replace(collate([segment], num_passes=num_passes), real=False)

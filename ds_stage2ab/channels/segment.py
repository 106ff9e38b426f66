"""Prompt and target of a sample -> one segment, for both channels."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from ds_stage2ab.carriers import Sample, Segment, Skipped, Target
from ds_stage2ab.errors import DataError

ON_OVERLONG = "data.on_overlong"

PositionIndex = Callable[[Tensor, Tensor], Tensor]
"""(input_ids [T], image_grid_thw [images, 3]) -> position_ids [4, T]."""


class Overlong(DataError):
    """Prompt and target of a sample are longer than the cap."""


def segment_or_skipped(
    build: Callable[[Sample], Segment], sample: Sample, *, skip_overlong: bool
) -> Segment | Skipped:
    """The segment that `build` makes, or `Skipped` for a sample that is too long.

    Raises:
        Overlong: it is too long, and `skip_overlong` is False.
    """
    try:
        return build(sample)
    except Overlong as error:
        if not skip_overlong:
            raise
        return Skipped(sample_id=sample.id, draw=sample.draw, why=error.why)


def make_segment(
    sample: Sample,
    target: Target,
    positions: PositionIndex,
    *,
    max_length: int,
    remedy: str,
    terms: Mapping[str, tuple[float, float]],
) -> Segment:
    """Concatenate the prompt (weight 0) and the target; slots count from the prompt's first token.

    Args:
        positions: position ids of one sample alone.
        max_length: `training.global_max_length`, tokens.
        remedy: the key that shortens the targets of this channel, for the message.
        terms: the channel's metrics of this sample: name -> (sum, count).

    Raises:
        Overlong: the two are longer than `max_length`.
    """
    prompt_length = len(sample.prompt_ids)
    ids = torch.cat([torch.tensor(sample.prompt_ids, dtype=torch.long), torch.from_numpy(target.ids)])
    if len(ids) > max_length:
        raise Overlong(
            f"prompt and answer are {len(ids)} tokens long, training.global_max_length is {max_length}",
            where=sample.id,
            fix=f"set training.global_max_length to {len(ids)} or more, or {remedy} lower,"
            f" or {ON_OVERLONG} to skip such samples",
        )
    return Segment(
        input_ids=ids,
        position_ids=positions(ids, sample.vision.image_grid_thw),
        vision=sample.vision,
        weights=pad(torch.from_numpy(target.weights), (prompt_length, 0)),
        is_desc=pad(torch.from_numpy(target.is_desc), (prompt_length, 0)),
        slots=torch.from_numpy(target.slots) + prompt_length,
        bins=torch.from_numpy(target.bins),
        score_slots=torch.from_numpy(target.score_slots) + prompt_length,
        score_bins=torch.from_numpy(target.score_bins),
        sample_id=sample.id,
        draw=sample.draw,
        terms=terms,
    )

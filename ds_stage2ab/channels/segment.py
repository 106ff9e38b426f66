"""What both channels end with: a sample's prompt and the target behind it, as one segment."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from ds_stage2ab.carriers import Sample, Segment, Target
from ds_stage2ab.errors import DataError

PositionIndex = Callable[[Tensor, Tensor], Tensor]
"""(input_ids [T], image_grid_thw [images, 3]) -> position_ids [4, T]."""


def make_segment(
    sample: Sample,
    target: Target,
    positions: PositionIndex,
    *,
    channel: str,
    max_length: int,
    remedy: str,
    terms: Mapping[str, tuple[float, float]],
) -> Segment:
    """The prompt, of weight 0, and the target, its slots counted from the prompt's first token.

    Args:
        positions: position ids of one sample alone.
        max_length: `training.global_max_length`, tokens.
        remedy: the key that makes what this channel learns shorter.
        terms: what the channel reports of this sample: metric name -> (sum, count).

    Raises:
        DataError: the two are longer than `max_length`.
    """
    prompt_length = len(sample.prompt_ids)
    ids = torch.cat([torch.tensor(sample.prompt_ids, dtype=torch.long), torch.from_numpy(target.ids)])
    if len(ids) > max_length:
        raise DataError(
            f"prompt and answer are {len(ids)} tokens long, training.global_max_length is {max_length}",
            where=sample.id,
            fix=f"set training.global_max_length to {len(ids)} or more, or {remedy} lower",
        )
    return Segment(
        input_ids=ids,
        position_ids=positions(ids, sample.vision.image_grid_thw),
        vision=sample.vision,
        weights=pad(torch.from_numpy(target.weights), (prompt_length, 0)),
        is_desc=pad(torch.from_numpy(target.is_desc), (prompt_length, 0)),
        slots=torch.from_numpy(target.slots) + prompt_length,
        bins=torch.from_numpy(target.bins),
        sample_id=sample.id,
        draw=sample.draw,
        channel=channel,
        terms=terms,
    )

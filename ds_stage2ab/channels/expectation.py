"""Channel A, the expectation loop: teacher forcing on the ground truth.

What is learned is the answer that the codec writes for the ground truth. The loop itself (further passes that
read expected embeddings at the coordinate slots) belongs to the objective; the channel only says how many.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ds_stage2ab.carriers import Sample, Segment
from ds_stage2ab.codec.text import Codec, encode_answer
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.errors import DataError

PositionIndex = Callable[[Tensor, Tensor], Tensor]
"""(input_ids [T], image_grid_thw [images, 3]) -> position_ids [4, T]."""


class Expectation:
    """Samples -> segments for Channel A.

    Args:
        codec: writes the answer.
        vocabulary: the checkpoint's ids.
        positions: position ids of one sample alone.
        num_passes: `stage2_ab.n_softctx_iter`.
        desc_ce_weight: cross-entropy weight of the tokens of a description's value.
        max_length: `training.global_max_length`, tokens.
    """

    name = "A"

    def __init__(
        self,
        codec: Codec,
        vocabulary: Vocabulary,
        positions: PositionIndex,
        *,
        num_passes: int,
        desc_ce_weight: float,
        max_length: int,
    ) -> None:
        self.codec = codec
        self.vocabulary = vocabulary
        self.positions = positions
        self.num_passes = num_passes
        self.desc_ce_weight = desc_ce_weight
        self.max_length = max_length

    def segments(self, samples: list[Sample], step: int) -> list[Segment]:
        """One segment for each sample, in order; a function of the sample alone, whatever the step."""
        return [self._segment(sample) for sample in samples]

    def _segment(self, sample: Sample) -> Segment:
        answer = encode_answer(sample.objects, self.vocabulary, self.codec, where=sample.id)
        prompt_length = len(sample.prompt_ids)
        ids = torch.tensor(sample.prompt_ids + answer.ids)
        if len(ids) > self.max_length:
            raise DataError(
                f"prompt and answer are {len(ids)} tokens long, training.global_max_length is {self.max_length}",
                where=sample.id,
                fix=f"set training.global_max_length to {len(ids)} or more, or data.max_pixels lower",
            )
        is_desc = torch.tensor([False] * prompt_length + list(answer.is_desc))
        slots = torch.tensor(answer.slots, dtype=torch.long) + prompt_length
        weights = torch.ones(len(ids))
        weights[:prompt_length] = 0
        weights[is_desc] = self.desc_ce_weight
        weights[slots] = 0
        return Segment(
            input_ids=ids,
            position_ids=self.positions(ids, sample.vision.image_grid_thw),
            vision=sample.vision,
            weights=weights,
            is_desc=is_desc,
            slots=slots,
            bins=torch.tensor(answer.bins, dtype=torch.long),
            sample_id=sample.id,
            draw=sample.draw,
            channel=self.name,
        )

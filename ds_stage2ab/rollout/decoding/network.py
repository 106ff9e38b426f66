"""The model of a Qwen3-VL, called for images, and for passes of decoding.

Legend: T tokens of a pass, N places after which a token is chosen, V ids of the vocabulary.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ds_stage2ab.carriers import Sample
from ds_stage2ab.losses.attention import NO_MASK
from ds_stage2ab.rollout.decoding.passes import PassInputs

Features = tuple[list[Tensor], list[list[Tensor]]]
"""Of one sample: for each image what stands in for its placeholders, and the same for each layer that gets some."""


def image_features(model: Any, samples: Sequence[Sample]) -> list[Features]:
    """One pass of the vision tower over the images of all samples."""
    counts = [len(sample.vision.image_grid_thw) for sample in samples]
    if not sum(counts):
        return [([], []) for _ in samples]
    pixels = torch.cat([sample.vision.pixel_values for sample in samples]).to(model.device, model.dtype)
    grids = torch.cat([sample.vision.image_grid_thw for sample in samples]).to(model.device)
    found = model.get_image_features(pixels, grids, return_dict=True)
    features, first = [], 0
    for count in counts:
        own = slice(first, first + count)
        features.append((list(found.pooler_output[own]), [list(one[own]) for one in found.deepstack_features]))
        first += count
    return features


def logits_of(model: nn.Module, inputs: PassInputs, features: Sequence[Features]) -> Tensor:
    """The logits at the picked places, [N, V].

    Args:
        features: of the prompts in the pass, in their order.
    """
    images = [image for pooled, _ in features for image in pooled]
    given: dict[str, Any] = {}
    if images:
        layers = zip(*(layered for _, layered in features), strict=True)
        deep = [[image for part in layer for image in part] for layer in layers]
        given["mm_encoder_outputs"] = {"image": SimpleNamespace(pooler_output=images, deepstack_features=deep)}
    return model(
        input_ids=inputs.tokens_T[None],
        position_ids=inputs.position_ids,
        attention_mask=NO_MASK,
        use_cache=False,
        logits_to_keep=inputs.picked_N,
        slots=inputs.slots,
        **given,
    ).logits[0]

"""The learner's probabilities of an answer that it did not generate: one forward over prompt and answer."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ds_stage2ab.carriers import Probabilities, Sample
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.losses.attention import segment_arguments

Positions = Callable[[Tensor, Tensor], Tensor]
"""(input_ids [T], image_grid_thw [images, 3]) -> position_ids [4, T]."""
ROWS = 256
"""Positions whose distributions exist at once in fp32: of a vocabulary of 152,000 each takes 0.6 MB."""


@torch.no_grad()
def answer_logits(model: nn.Module, sample: Sample, response: Sequence[int], positions: Positions) -> Tensor:
    """The logits that predict each token of the response, [T, V] on the model's device.

    Under ZeRO 3 a collective, like every forward.
    """
    first, device = len(sample.prompt_ids), next(model.parameters()).device
    ids = torch.tensor([*sample.prompt_ids, *response])
    vision = sample.vision.to(device)
    training = model.training
    model.eval()
    try:
        return model(
            input_ids=ids[None].to(device),
            position_ids=positions(ids, sample.vision.image_grid_thw)[:, None].to(device),
            use_cache=False,
            pixel_values=vision.pixel_values.to(model.dtype),
            image_grid_thw=vision.image_grid_thw,
            logits_to_keep=torch.arange(first - 1, len(ids) - 1, device=device),
            **segment_arguments(model, (0, len(ids))),
        ).logits[0]
    finally:
        model.train(training)


class Scorer:
    """Computes the probabilities that `generate` would have recorded for its own answers.

    Args:
        model: the model that trains, with DeepSpeed's hooks.
        vocabulary: its vision tokens are never sampled and have probability 0.
        positions: position ids of one sequence alone.
    """

    def __init__(self, model: nn.Module, vocabulary: Vocabulary, positions: Positions) -> None:
        self.model = model
        self.vision_ids = list(vocabulary.vision_ids)
        self.coordinate_ids = list(vocabulary.coordinate_ids)
        self.positions = positions

    def __call__(self, sample: Sample, response: Sequence[int]) -> Probabilities:
        """Of each token of the response; collective, with any sample and any length of answer on each rank."""
        logits_TV = answer_logits(self.model, sample, response, self.positions)
        drawn_T = torch.tensor(response, dtype=torch.long, device=logits_TV.device)
        log_probs, masses = [], []
        for part_RV, drawn_R in zip(logits_TV.split(ROWS), drawn_T.split(ROWS), strict=True):
            scores_RV = part_RV.float()
            scores_RV[:, self.vision_ids] = -torch.inf
            scores_RV = torch.log_softmax(scores_RV, dim=-1)
            log_probs.append(scores_RV.gather(1, drawn_R[:, None])[:, 0].cpu())
            masses.append(scores_RV[:, self.coordinate_ids].exp().sum(1).cpu())
        return Probabilities(log_probs=torch.cat(log_probs).numpy(), coordinate_mass=torch.cat(masses).numpy())

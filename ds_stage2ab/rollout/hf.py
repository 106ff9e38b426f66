"""Rollouts by Hugging Face `generate` on the learner's own weights.

At most `decode_batch_size` rows are alive at any moment: requests are decoded in chunks of that many,
sorted by prompt length so that a chunk pads little, and returned in request order.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from ds_stage2ab.carriers import Rollout, Sample
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.rollout.base import Sampling, request_seed


class HfBackend:
    """Decodes on this rank.

    Args:
        model: the plain model inside the engine; its parameters are whole (ZeRO 0 to 2).
        vocabulary: the checkpoint's ids; its vision placeholders are never sampled.
        decode_batch_size: most rows alive at any moment.
        start_id: new each time a learner process group starts; first half of the weight version.
        seed: `training.seed`.
    """

    def __init__(
        self, model: nn.Module, vocabulary: Vocabulary, *, decode_batch_size: int, start_id: str, seed: int
    ) -> None:
        self.model = model
        self.vocabulary = vocabulary
        self.decode_batch_size = decode_batch_size
        self.start_id = start_id
        self.seed = seed

    def generate(self, samples: list[Sample], sampling: Sampling, *, finished_steps: int) -> list[Rollout]:
        """One rollout for each sample, in order; greedy alone so far."""
        assert sampling.temperature == 0, "a sampled rollout needs a random stream of its own for each request"
        config = generation_config(sampling, self.vocabulary)
        version = f"{self.start_id}/{finished_steps}"
        order = sorted(range(len(samples)), key=lambda index: (len(samples[index].prompt_ids), index))
        rollouts: dict[int, Rollout] = {}
        with torch.no_grad(), _as_decoder(self.model):
            for first in range(0, len(order), self.decode_batch_size):
                members = order[first : first + self.decode_batch_size]
                chunk = [samples[index] for index in members]
                rollouts.update(zip(members, self._decode(chunk, config, version), strict=True))
        return [rollouts[index] for index in range(len(samples))]

    def _decode(self, chunk: list[Sample], config: GenerationConfig, version: str) -> list[Rollout]:
        start = time.monotonic()
        inputs = self._left_padded(chunk)
        width = inputs["input_ids"].shape[1]
        output_BL = self.model.generate(**inputs, generation_config=config)
        responses = [self._trim(row) for row in output_BL[:, width:].tolist()]
        seconds = time.monotonic() - start
        return [
            Rollout(
                sample_id=sample.id,
                draw=sample.draw,
                prompt_ids=sample.prompt_ids,
                response_ids=tuple(response),
                finish="stop" if stopped else "length",
                weight_version=version,
                seed=request_seed(self.seed, sample.draw, sample.id),
                source="hf",
                seconds=seconds,
            )
            for sample, (response, stopped) in zip(chunk, responses, strict=True)
        ]

    def _left_padded(self, chunk: list[Sample]) -> dict[str, Tensor]:
        """Prompts right-aligned to the longest: ids and mask [B, L], image patches back to back."""
        width = max(len(sample.prompt_ids) for sample in chunk)
        pads = [width - len(sample.prompt_ids) for sample in chunk]
        ids = [[self.vocabulary.stop_id] * pad + list(s.prompt_ids) for pad, s in zip(pads, chunk, strict=True)]
        input_ids = torch.tensor(ids)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": (torch.arange(width)[None] >= torch.tensor(pads)[:, None]).long(),
            "mm_token_type_ids": (input_ids == self.vocabulary.image_id).int(),
            "pixel_values": torch.cat([sample.vision.pixel_values for sample in chunk]).to(self.model.dtype),
            "image_grid_thw": torch.cat([sample.vision.image_grid_thw for sample in chunk]),
        }
        return {name: tensor.to(self.model.device) for name, tensor in inputs.items()}

    def _trim(self, ids: list[int]) -> tuple[list[int], bool]:
        """Ids before the stop token, and whether there was one."""
        if self.vocabulary.stop_id not in ids:
            return ids, False
        return ids[: ids.index(self.vocabulary.stop_id)], True


def generation_config(sampling: Sampling, vocabulary: Vocabulary) -> GenerationConfig:
    """Every sampling field set, so that none is inherited from the checkpoint."""
    sample = sampling.temperature > 0
    return GenerationConfig(
        do_sample=sample,
        temperature=sampling.temperature if sample else 1.0,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        repetition_penalty=sampling.repetition_penalty,
        max_new_tokens=sampling.max_new_tokens,
        num_beams=1,
        use_cache=True,
        eos_token_id=vocabulary.stop_id,
        pad_token_id=vocabulary.stop_id,
        bos_token_id=None,
        suppress_tokens=list(vocabulary.vision_ids),
    )


@contextmanager
def _as_decoder(model: Any) -> Iterator[None]:
    """Eval mode and a blank generation config inside; both as before afterwards, whatever happens.

    `generate` fills every field that ours leaves at None from the model's own config, the checkpoint's file.
    """
    training, own_config = model.training, model.generation_config
    model.eval()
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own_config
        model.train(training)

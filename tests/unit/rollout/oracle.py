"""What answers should be: those of the model's own `generate`, one prompt at a time, every field of it set."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ds_stage2ab.carriers import Sample
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.rollout.base import Sampling, request_seed
from ds_stage2ab.rollout.draws import choose
from ds_stage2ab.rollout.repeat_guard import repeats
from tests.unit.parts import Bench

Answer = tuple[tuple[int, ...], str]
"""(ids without the stop, how it ended)."""


def generation_config(sampling: Sampling, vocabulary: Vocabulary) -> GenerationConfig:
    """Greedy: `Draws` makes it sample."""
    return GenerationConfig(
        do_sample=False,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        repetition_penalty=sampling.repetition_penalty,
        max_new_tokens=sampling.max_new_tokens,
        num_beams=1,
        use_cache=True,
        eos_token_id=vocabulary.stop_id,
        pad_token_id=vocabulary.stop_id,
        bos_token_id=None,
        suppress_tokens=list(vocabulary.vision_ids),
    )


class Draws(LogitsProcessor):
    """Leaves a row [1, V] its draw alone.

    Args:
        width: tokens of the prompt.
    """

    def __init__(self, sampling: Sampling, seed: int, width: int) -> None:
        self.sampling, self.seed, self.width = sampling, torch.tensor([seed]), width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        place = torch.tensor([input_ids.shape[1] - self.width])
        drawn = choose(scores, self.sampling, self.seed, place)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn[:, None], 0.0)


class Guard(LogitsProcessor):
    """Leaves a row [1, V] that breaks a rule its stop alone."""

    def __init__(self, sampling: Sampling, vocabulary: Vocabulary, width: int) -> None:
        self.limits, self.stop_id, self.width = sampling.repeat_terminate, vocabulary.stop_id, width
        self.coordinates = torch.tensor(vocabulary.coordinate_ids)
        self.ended = False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.ended = bool(repeats(input_ids[:, self.width :], self.coordinates, self.limits, 4))
        if self.ended:
            scores = torch.full_like(scores, -torch.inf)
            scores[:, self.stop_id] = 0
        return scores


def plain_answers(bench: Bench, samples: Sequence[Sample], sampling: Sampling, seed: int) -> list[Answer]:
    return [_answer(bench, sample, sampling, request_seed(seed, sample.draw, sample.id)) for sample in samples]


def _answer(bench: Bench, sample: Sample, sampling: Sampling, seed: int) -> Answer:
    ids, vocabulary = torch.tensor(sample.prompt_ids)[None], bench.vocabulary
    guard = Guard(sampling, vocabulary, ids.shape[1])
    drawing = [Draws(sampling, seed, ids.shape[1])] if sampling.temperature else []
    before, bench.model.generation_config = bench.model.generation_config, GenerationConfig()
    try:
        output = bench.model.generate(
            input_ids=ids,
            mm_token_type_ids=(ids == vocabulary.image_id).int(),
            pixel_values=sample.vision.pixel_values,
            image_grid_thw=sample.vision.image_grid_thw,
            generation_config=generation_config(sampling, vocabulary),
            logits_processor=LogitsProcessorList([*drawing, guard]),
        )[0, ids.shape[1] :].tolist()
    finally:
        bench.model.generation_config = before
    if output[-1] != vocabulary.stop_id:
        return tuple(output), "length"
    return tuple(output[:-1]), "repeat" if guard.ended else "stop"

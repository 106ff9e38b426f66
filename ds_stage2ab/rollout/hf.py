"""Rollouts by Hugging Face `generate` on the learner's own weights.

At most `decode_batch_size` rows are alive at any moment: requests are decoded in chunks of that many,
sorted by prompt length so that a chunk pads little, and returned in request order. A draw depends on its own request
alone (`draws.py`), so that an answer does not depend on the others in its chunk.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from ds_stage2ab import ops
from ds_stage2ab.carriers import Probabilities, Rollout, Sample
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.rollout.base import Sampling, request_seed, weight_version
from ds_stage2ab.rollout.draws import Draws
from ds_stage2ab.rollout.probabilities import ProbabilityRecorder
from ds_stage2ab.rollout.repeat_guard import RepeatGuard

Positions = Callable[[Tensor, Tensor], Tensor]
"""(input_ids [T], image_grid_thw [images, 3]) -> position_ids [4, T]."""


class HfBackend:
    """Decodes on this rank.

    Args:
        whole_model: gathers the full parameters; collective.
        vocabulary: the checkpoint's ids; its vision placeholders are never sampled.
        positions: position ids of one prompt alone.
        decode_batch_size: most rows alive at any moment.
        start_id: new each time a learner process group starts; first half of the weight version.
        seed: `training.seed`.
        check_stop: raises before a token is generated, if the run shall stop.
    """

    streams = False
    probe_gap = None
    transfer = None
    score = None

    def __init__(
        self,
        whole_model: Callable[[], AbstractContextManager[nn.Module]],
        vocabulary: Vocabulary,
        positions: Positions,
        *,
        decode_batch_size: int,
        start_id: str,
        seed: int,
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self.check_stop = check_stop
        self.whole_model = whole_model
        self.model: nn.Module | None = None  # only inside `current_weights`
        self.vocabulary = vocabulary
        self.positions = positions
        self.decode_batch_size = decode_batch_size
        self.start_id = start_id
        self.seed = seed

    @contextmanager
    def current_weights(self, finished_steps: int) -> Iterator[None]:
        """Inside, the full parameters are there: the learner's own, so always current."""
        with self.whole_model() as self.model:
            try:
                yield
            finally:
                self.model = None

    def verify_weights(self, finished_steps: int) -> None:
        """Nothing to do: the weights are the learner's own."""

    def generate(self, samples: list[Sample], sampling: Sampling, *, finished_steps: int) -> list[Rollout]:
        """One rollout for each sample, in order; inside `current_weights`."""
        assert self.model is not None, "the weights are at hand inside `current_weights` alone"
        config = generation_config(sampling, self.vocabulary)
        prompts = _Prompts(samples, self.positions, pad_id=_pad_id(self.vocabulary))
        order = sorted(range(len(samples)), key=lambda index: (len(samples[index].prompt_ids), index))
        rollouts: dict[int, Rollout] = {}
        with torch.no_grad(), _as_decoder(self.model):
            for first in range(0, len(order), self.decode_batch_size):
                members = order[first : first + self.decode_batch_size]
                inputs = self._to_model(prompts.chunk(members))
                chunk = [samples[index] for index in members]
                rollouts |= zip(members, self._decode(chunk, inputs, config, sampling, finished_steps), strict=True)
        return [rollouts[index] for index in range(len(samples))]

    def resolved(self, sampling: Sampling) -> dict[str, Any]:
        """The parameters of `generate` and of the logits processors."""
        config = generation_config(sampling, self.vocabulary)
        return {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "repetition_penalty": config.repetition_penalty,
            "max_new_tokens": config.max_new_tokens,
            "stop_ids": [config.eos_token_id],
            "forbidden_ids": sorted(config.suppress_tokens),
            "repeat_terminate": asdict(sampling.repeat_terminate),
        }

    def _decode(
        self,
        chunk: list[Sample],
        inputs: dict[str, Tensor],
        config: GenerationConfig,
        sampling: Sampling,
        finished_steps: int,
    ) -> list[Rollout]:
        start = time.monotonic()
        seeds = [request_seed(self.seed, sample.draw, sample.id) for sample in chunk]
        prompt_width = inputs["input_ids"].shape[1]
        coordinate_ids = torch.tensor(self.vocabulary.coordinate_ids, device=self.model.device)
        recorder = ProbabilityRecorder(coordinate_ids)
        guard = RepeatGuard(
            sampling.repeat_terminate,
            prompt_width=prompt_width,
            stop_id=self.vocabulary.stop_id,
            coordinate_ids=coordinate_ids,
        )
        watching = [recorder] if sampling.with_probabilities else []
        drawing = [Draws(sampling, seeds, prompt_width)] if sampling.temperature > 0 else []
        guarding = [guard] if guard.is_on else []
        processors = LogitsProcessorList([*watching, *drawing, *guarding])
        stopping = StoppingCriteriaList([_Interruption(self.check_stop)])
        output_BL = self.model.generate(
            **inputs, generation_config=config, logits_processor=processors, stopping_criteria=stopping
        )
        generated_BL = output_BL[:, prompt_width:].cpu()
        tokens, lengths, stopped = ops.trim_responses(generated_BL, self.vocabulary.stop_id)
        responses = [tuple(part.tolist()) for part in tokens.split(lengths.tolist())]
        probabilities = _probabilities(recorder, output_BL, lengths) if watching else [None] * len(chunk)
        repeated = guard.ended(len(chunk))
        seconds = time.monotonic() - start
        return [
            Rollout(
                sample_id=sample.id,
                draw=sample.draw,
                prompt_ids=sample.prompt_ids,
                response_ids=response,
                finish="repeat" if repeated[row] else "stop" if ended else "length",
                weight_version=weight_version(self.start_id, finished_steps),
                seed=seed,
                source="hf",
                seconds=seconds,
                attempt=1,
                probabilities=probabilities[row],
            )
            for row, (sample, response, ended, seed) in enumerate(
                zip(chunk, responses, stopped.tolist(), seeds, strict=True)
            )
        ]

    def _to_model(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """On the model's device, pixels in its precision."""
        moved = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        return moved | {"pixel_values": moved["pixel_values"].to(self.model.dtype)}


class _Interruption(StoppingCriteria):
    """Looks between two tokens whether the run shall stop."""

    def __init__(self, check: Callable[[], None]) -> None:
        self.check = check

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        self.check()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class _Prompts:
    """The prompts of all requests concatenated, packed chunk by chunk for `generate`.

    Args:
        samples: in request order.
        positions: position ids of one prompt alone.
        pad_id: the token of the padding.
    """

    def __init__(self, samples: list[Sample], positions: Positions, *, pad_id: int) -> None:
        ids = [torch.tensor(sample.prompt_ids) for sample in samples]
        self.samples = samples
        self.pad_id = pad_id
        self.lengths = [len(prompt) for prompt in ids]
        self.offsets = torch.tensor([0, *accumulate(self.lengths)])
        self.tokens_N = torch.cat(ids) if ids else torch.empty(0, dtype=torch.long)
        grids = [sample.vision.image_grid_thw for sample in samples]
        rows = [positions(prompt, grid) for prompt, grid in zip(ids, grids, strict=True)]
        self.positions_AN = torch.cat(rows, dim=1) if rows else torch.empty(4, 0, dtype=torch.long)

    def chunk(self, members: list[int]) -> dict[str, Tensor]:
        """Inputs of one `generate`: ids and mask [B, L], positions [4, B, L], image patches back to back."""
        order, width = torch.tensor(members), max(self.lengths[index] for index in members)
        input_ids, mask = ops.pack_left(self.tokens_N, self.offsets, order, self.pad_id, width)
        visions = [self.samples[index].vision for index in members]
        return {
            "input_ids": input_ids,
            "attention_mask": mask,
            "position_ids": ops.pack_left_positions(self.positions_AN, self.offsets, order, width),
            "pixel_values": torch.cat([vision.pixel_values for vision in visions]),
            "image_grid_thw": torch.cat([vision.image_grid_thw for vision in visions]),
        }


def _probabilities(recorder: ProbabilityRecorder, output_ids: Tensor, lengths: Tensor) -> list[Probabilities]:
    """The probabilities of each row's response, without the stop and the padding."""
    log_probs_BL, masses_BL = (part.numpy() for part in recorder.result(output_ids))
    return [
        Probabilities(log_probs=log_probs_BL[row, :length], coordinate_mass=masses_BL[row, :length])
        for row, length in enumerate(lengths.tolist())
    ]


def _pad_id(vocabulary: Vocabulary) -> int:
    """A token that can never be sampled if there is one, since the repetition penalty counts padding too.

    Not the image placeholder: the model compares the number of those with its patches.
    """
    return next((token for token in vocabulary.vision_ids if token != vocabulary.image_id), vocabulary.stop_id)


def generation_config(sampling: Sampling, vocabulary: Vocabulary) -> GenerationConfig:
    """Every field set, so that none is inherited from the checkpoint.

    `generate` itself is always greedy: the processor of `rollout.draws` makes it sample.
    """
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


@contextmanager
def _as_decoder(model: Any) -> Iterator[None]:
    """Eval mode and a blank generation config inside; both are always restored.

    `generate` fills every field that is None in the given config from the model's own config, the checkpoint's file.
    """
    training, own_config = model.training, model.generation_config
    model.eval()
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own_config
        model.train(training)

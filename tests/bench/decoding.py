"""Decoding beside its peers: plain `generate` in arrival order, and the continuous batching of other libraries."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from deepspeed.runtime.rollout.base import RolloutRequest, SamplingConfig
from deepspeed.runtime.rollout.hybrid_engine_rollout import HybridEngineRollout, HybridEngineRolloutConfig
from deepspeed.utils.static_cache import DeepSpeedStaticCache
from torch import Tensor, nn
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

from ds_stage2ab.carriers import Sample, Vision
from ds_stage2ab.rollout.hf import HfBackend

Answers = list[tuple[int, ...]]


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, L]."""
    width = max(map(len, prompts))
    ids = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def naive(model: PreTrainedModel, samples: Sequence[Sample], vocabulary: Any, rows: int, most: int) -> Answers:
    """`generate` on chunks of so many samples as they come, padded on the left."""
    config = GenerationConfig(
        do_sample=False,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        repetition_penalty=1.0,
        max_new_tokens=most,
        eos_token_id=vocabulary.stop_id,
        pad_token_id=vocabulary.stop_id,
        suppress_tokens=list(vocabulary.vision_ids) or None,
    )
    answers: Answers = []
    for first in range(0, len(samples), rows):
        chunk = samples[first : first + rows]
        ids, mask = left_padded([sample.prompt_ids for sample in chunk], vocabulary.stop_id)
        given = {"input_ids": ids, "attention_mask": mask}
        if vocabulary.vision_ids:
            given["mm_token_type_ids"] = (ids == vocabulary.image_id).int()
            given["pixel_values"] = torch.cat([sample.vision.pixel_values for sample in chunk])
            given["image_grid_thw"] = torch.cat([sample.vision.image_grid_thw for sample in chunk])
        output = model.generate(**given, generation_config=config)[:, ids.shape[1] :].tolist()
        answers += [up_to_stop(answer, vocabulary.stop_id) for answer in output]
    return answers


def continuous(model: PreTrainedModel, samples: Sequence[Sample], stop_id: int, rows: int, most: int) -> Answers:
    """transformers' continuous batching; it takes ids alone."""
    config = GenerationConfig(
        do_sample=False, max_new_tokens=most, eos_token_id=stop_id, pad_token_id=stop_id, max_batch_size=rows
    )
    own = model.config._attn_implementation
    try:
        outputs = model.generate_batch(
            inputs=[list(sample.prompt_ids) for sample in samples],
            generation_config=config,
            # its own guess of the memory takes longer than the answers
            continuous_batching_config=ContinuousBatchingConfig(
                max_requests_per_batch=rows, num_blocks=64, max_batch_tokens=1024
            ),
            progress_bar=False,
        )
    finally:
        model.set_attn_implementation(own)
    by_prompt = {tuple(one.prompt_ids): one.generated_tokens for one in outputs.values()}
    return [up_to_stop(by_prompt[sample.prompt_ids], stop_id) for sample in samples]


def deepspeeds(model: PreTrainedModel, tokenizer: Any, samples: Sequence[Sample], rows: int, most: int) -> Answers:
    """DeepSpeed's continuous batching, in the form that keeps its cache small.

    Its limits: greedy alone, text alone, prompts padded to one width, each of them a prefill of its own; and its cache
    lacks a method that transformers 5.19 asks for, which is given to it here.
    """
    DeepSpeedStaticCache.get_query_offset = DeepSpeedStaticCache.get_seq_length
    config = HybridEngineRolloutConfig(align_decode_fronts=True)
    engine = HybridEngineRollout(SimpleNamespace(module=model), tokenizer, config)
    ids, mask = left_padded([sample.prompt_ids for sample in samples], tokenizer.eos_token_id)
    sampling = SamplingConfig(max_new_tokens=most, temperature=0.0, continuous_batch_size=rows)
    output = engine.generate(RolloutRequest(ids, mask), sampling).input_ids[:, ids.shape[1] :].tolist()
    return [up_to_stop(answer, tokenizer.eos_token_id) for answer in output]


def up_to_stop(ids: Sequence[int], stop_id: int) -> tuple[int, ...]:
    return tuple(ids[: ids.index(stop_id)] if stop_id in ids else ids)


def decoded(backend: HfBackend, samples: list[Sample], sampling: Any) -> Answers:
    """As Channel B asks for them."""
    with backend.current_weights(0):
        rollouts = backend.generate(samples, sampling, finished_steps=0)
    return [rollout.response_ids for rollout in rollouts]


@contextmanager
def moved(model: nn.Module, turn: int) -> Iterator[None]:
    """Inside, the weights are those after a step or two: answers change a little from turn to turn."""
    generator = torch.Generator().manual_seed(turn)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 2e-3 * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator)
    try:
        yield
    finally:
        for parameter, own in zip(model.parameters(), before, strict=True):
            parameter.data.copy_(own)


def paired(model: nn.Module, turns: int, jobs: dict[str, Callable[[], Answers]]) -> dict[str, list[float]]:
    """CPU seconds of each job in each turn, with the same weights within a turn; all answers of a turn are equal.

    On one thread, as the tests run, those are the wall seconds of a machine with nothing else to do.
    """
    assert torch.get_num_threads() == 1, "threads that wait for each other spend CPU seconds too: OMP_NUM_THREADS=1"
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(turns):
        with moved(model, turn):
            found = {}
            for name, job in jobs.items():
                start = time.process_time()
                found[name] = job()
                seconds[name].append(time.process_time() - start)
        (first, expected), *others = found.items()
        for name, answers in others:
            assert answers == expected, f"turn {turn}: {name} and {first} differ"
    return seconds


def table(seconds: dict[str, list[float]], num_tokens: int) -> str:
    """One row for each job; the ratio is the median over the turns of the first job's time over this one's."""
    base = next(iter(seconds.values()))
    lines = [f"{'':34} {'tok/s':>8} {'ratio':>6}"]
    for name, own in seconds.items():
        lines.append(f"{name:34} {num_tokens / statistics.median(own):8.0f} {ratio(base, own):6.2f}")
    return "\n".join(lines)


def ratio(base: Sequence[float], own: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(base, own, strict=True))


class TextOnly(nn.Module):
    """A language model without a vision tower, as the loop calls a Qwen3-VL."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.config = SimpleNamespace(text_config=model.config)
        self.device, self.dtype = model.device, model.dtype

    def set_attn_implementation(self, names: dict[str, str]) -> None:
        self.model.set_attn_implementation(names["text_config"])

    def forward(self, *, position_ids: Tensor, **given: Any) -> Any:
        return self.model(position_ids=position_ids[0], **given)


def text_sample(place: int, prompt: Sequence[int]) -> Sample:
    """A request without an image."""
    vision = Vision(pixel_values=torch.empty(0), image_grid_thw=torch.empty(0, 3, dtype=torch.long))
    size = {"width": 1, "height": 1, "user_prompt": ""}
    return Sample(
        id=str(place), draw=place, image=b"", objects=(), prompt_ids=tuple(prompt), vision=vision, **size
    )


def text_backend(model: PreTrainedModel, stop_id: int, rows: int) -> tuple[HfBackend, Any]:
    """The backend for such requests, and its vocabulary."""
    vocabulary = SimpleNamespace(stop_id=stop_id, vision_ids=(), coordinate_ids=(0,), coordinate_bins={})
    wrapped = TextOnly(model)

    def positions(ids: Tensor, grid: Tensor) -> Tensor:
        return torch.arange(len(ids)).expand(4, -1)

    settings = {"decode_batch_size": rows, "start_id": "bench", "seed": 0}
    return HfBackend(lambda: nullcontext(wrapped), vocabulary, positions, **settings), vocabulary

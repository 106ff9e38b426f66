"""A real language model of 135 million parameters: fp32 answers are those of plain `generate`, one prompt at a time."""

import random
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LogitsProcessorList

from ds_stage2ab.rollout.base import request_seed
from tests.bench.decoding import decoded, text_backend, text_sample, up_to_stop
from tests.bench.language_model import write_checkpoint
from tests.bench.test_text_decoding import prompts
from tests.unit.parts import greedy_sampling
from tests.unit.rollout.oracle import Draws

GREEDY = greedy_sampling(max_new_tokens=16)
SAMPLINGS = {
    "greedy": GREEDY,
    "drawn": replace(GREEDY, temperature=0.7, top_p=0.9, top_k=50),
    "penalty": replace(GREEDY, temperature=0.7, top_k=50, repetition_penalty=1.2),
}
CASES = {
    "greedy": (64, ((8, None), (3, "wrong"))),
    "drawn": (16, ((1, None), (16, "right"))),
    "penalty": (16, ((3, None), (8, "wrong"))),
}
"""Prompts; slots and drafts of each decoding: every value once, as a prompt costs a processor's second each time."""


class Known:
    """Drafts from an answer that is known, or anything.

    Args:
        answer: what will be written.
        rng: makes every second draft a wrong one; None: all are right.
    """

    def __init__(self, answer: tuple[int, ...], rng: random.Random | None) -> None:
        self.answer, self.rng, self.place = answer, rng, 0

    def read(self, tokens) -> None:
        self.place += len(tokens)

    def propose(self) -> list[int]:
        right = list(self.answer[self.place : self.place + 5])
        if self.rng is None or self.rng.random() < 0.5:
            return right
        return [*right[: self.rng.randrange(3)], self.rng.randrange(40_000), self.rng.randrange(40_000)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language-model")
    write_checkpoint(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    loaded.generation_config = GenerationConfig()
    loaded.tokenizer = AutoTokenizer.from_pretrained(folder)
    return loaded


def alone(model, sample, sampling):
    """By `generate`, on one row."""
    ids, stop_id = torch.tensor(sample.prompt_ids)[None], model.tokenizer.eos_token_id
    config = GenerationConfig(
        do_sample=False, top_k=0, repetition_penalty=sampling.repetition_penalty,
        max_new_tokens=sampling.max_new_tokens, eos_token_id=stop_id, pad_token_id=stop_id,
    )  # fmt: skip
    draws = [Draws(sampling, request_seed(0, sample.draw, sample.id), ids.shape[1])] if sampling.temperature else []
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    output = model.generate(**given, generation_config=config, logits_processor=LogitsProcessorList(draws))
    return up_to_stop(output[0, ids.shape[1] :].tolist(), stop_id)


@pytest.mark.soak
@pytest.mark.parametrize("name", SAMPLINGS)
def test_answers_depend_on_nothing_else(model, name):
    sampling, rng = SAMPLINGS[name], random.Random(0)
    number, decodings = CASES[name]
    samples = [text_sample(place, prompt) for place, prompt in enumerate(prompts(model.tokenizer, number))]
    expected = {sample.id: alone(model, sample, sampling) for sample in samples}
    for slots, drafted in decodings:
        rng.shuffle(samples)
        backend, _ = text_backend(model, model.tokenizer.eos_token_id, slots)
        if drafted:
            wrong = random.Random(slots) if drafted == "wrong" else None
            backend._drafter = lambda sample, wrong=wrong: Known(expected[sample.id], wrong)
        assert decoded(backend, samples, sampling) == [expected[sample.id] for sample in samples], (slots, drafted)
        done = backend.decoding
        assert bool(drafted) == (done.drafted > 0) and (drafted == "right") == (0 < done.accepted == done.drafted)

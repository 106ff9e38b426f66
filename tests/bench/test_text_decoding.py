"""Rollouts of a real language model of 135 million parameters beside its peers: products of few rows, large weights."""

import json
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from ds_stage2ab.carriers import Sample
from tests.bench.decoding import (
    continuous,
    decoded,
    deepspeeds,
    naive,
    paired,
    ratio,
    table,
    text_backend,
    text_sample,
)
from tests.bench.language_model import write_checkpoint
from tests.bench.served_text import served, text_server
from tests.parts import ROOT
from tests.unit.parts import greedy_sampling

SLOTS, TURNS, PROMPTS, MOST = 8, 5, 16, 64
WORD, TITLE = "Is this about software? Say yes or no.", "Give it a title of a few words."
TASKS = (WORD, TITLE, WORD, TITLE, "Explain it to a child.")
"""Answers of a word, of a few, and without an end: most are short, and few are long."""
LONGEST = 1024
"""Tokens of a prompt and its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """What is asked of whom."""

    folder: Path
    model: PreTrainedModel
    tokenizer: Any
    samples: list[Sample]

    @property
    def stop_id(self) -> int:
        return self.tokenizer.eos_token_id


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language-model")
    write_checkpoint(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    model.generation_config = GenerationConfig()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    samples = [text_sample(place, prompt) for place, prompt in enumerate(prompts(tokenizer))]
    return Text(folder=folder, model=model, tokenizer=tokenizer, samples=samples)


def prompts(tokenizer, number: int = PROMPTS) -> list[list[int]]:
    """Paragraphs of the documents, of some 50 to 600 tokens, whose answers have from 2 tokens to MOST and more.

    Evenly from the shortest to the longest, in any order: as the documents change, the lengths stay about the same.
    """
    pages = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    parts = sorted((part for part in pages.split("\n\n") if 40 < len(part) < 3000), key=len)
    chosen = [parts[len(parts) * (2 * place + 1) // (2 * number)] for place in range(number)]
    random.Random(0).shuffle(chosen)
    asked = [f"{part}\n\n{TASKS[place % len(TASKS)]}" for place, part in enumerate(chosen)]
    said = [[{"role": "user", "content": one}] for one in asked]
    return [tokenizer.apply_chat_template(one, add_generation_prompt=True, return_dict=False) for one in said]


def beside(text, capsys, name, job, number, most) -> float:
    """How many times faster the slots answer so many prompts than a peer; a table of both."""
    backend, _ = text_backend(text.model, text.stop_id, SLOTS)
    samples, sampling = text.samples[:number], greedy_sampling(max_new_tokens=most)
    jobs = {name: lambda: job(samples), "slots": lambda: decoded(backend, samples, sampling)}
    seconds = paired(text.model, TURNS, jobs)
    done = backend.decoding
    with capsys.disabled():
        asked = sum(len(sample.prompt_ids) for sample in samples)
        print(f"\n{number} prompts of {asked} tokens, {SLOTS} slots, {done.tokens} tokens of answers")
        print(table(seconds, done.tokens))
        print(f"live slots {done.live / done.slots:.2f}, passes {done.passes}")
    return ratio(seconds[name], seconds["slots"])


@pytest.mark.bench
def test_beside_generate(text, capsys):
    _, vocabulary = text_backend(text.model, text.stop_id, SLOTS)
    job = partial(naive, text.model, vocabulary=vocabulary, rows=SLOTS, most=MOST)
    assert beside(text, capsys, "generate, arrival order", job, PROMPTS, MOST) >= 3.0


@pytest.mark.bench
def test_beside_transformers_continuous_batching(text, capsys):
    """Half of the time is that of the prompts, which both pack, at the same speed of large products."""
    job = partial(continuous, text.model, stop_id=text.stop_id, rows=SLOTS, most=48)
    assert beside(text, capsys, "transformers' continuous batching", job, 12, 48) >= 1.5


@pytest.mark.bench
def test_prompts(text, capsys):
    """One token of each answer: the prompts alone."""
    backend, vocabulary = text_backend(text.model, text.stop_id, SLOTS)
    jobs = {
        "generate, arrival order": lambda: naive(text.model, text.samples, vocabulary, SLOTS, 1),
        "packed prompts": lambda: decoded(backend, text.samples, greedy_sampling(max_new_tokens=1)),
    }
    seconds = paired(text.model, TURNS, jobs)
    asked = sum(len(sample.prompt_ids) for sample in text.samples)
    with capsys.disabled():
        print(f"\n{PROMPTS} prompts, {asked} tokens of prompts\n{table(seconds, asked)}")
    assert ratio(seconds["generate, arrival order"], seconds["packed prompts"]) >= 2.2


@pytest.mark.bench
def test_memory(text, tmp_path, capsys):
    """Of the whole phase, above the loaded model."""
    asked = tmp_path / "prompts.json"
    asked.write_text(json.dumps([sample.prompt_ids for sample in text.samples]))
    peaks = {}
    for mode in ("generate", "slots", "slots_packed"):
        words = ["-m", "tests.bench.decoding_memory", mode, str(text.folder), str(asked), "16"]
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=True)
        peaks[mode] = int(done.stdout.splitlines()[-1])
    with capsys.disabled():
        print("\nMiB above the model:", {mode: peak >> 20 for mode, peak in peaks.items()})
    assert peaks["slots"] <= 1.1 * peaks["generate"]
    weights = sum(one.numel() * one.element_size() for one in text.model.parameters())
    assert peaks["slots_packed"] <= peaks["slots"] + 1.1 * weights


@pytest.mark.bench
def test_beside_deepspeeds(text, capsys):
    backend, _ = text_backend(text.model, text.stop_id, SLOTS)
    few = text.samples[:SLOTS]
    jobs = {
        "DeepSpeed's continuous batching": lambda: deepspeeds(text.model, text.tokenizer, few, SLOTS // 2, MOST // 2),
        "slots": lambda: decoded(backend, few, greedy_sampling(max_new_tokens=MOST // 2)),
    }
    backend.decode_batch_size = SLOTS // 2
    seconds = paired(text.model, 2, jobs)
    with capsys.disabled():
        print(f"\n{len(few)} prompts, {SLOTS // 2} slots\n{table(seconds, backend.decoding.tokens)}")
    assert ratio(seconds["DeepSpeed's continuous batching"], seconds["slots"]) >= 1


@pytest.mark.bench
def test_beside_a_vllm_server(text, tmp_path, capsys):
    """With a window of as many requests as there are slots; CPU seconds of all its processes, on as many threads."""
    backend, _ = text_backend(text.model, text.stop_id, SLOTS)
    sampling = greedy_sampling(max_new_tokens=MOST)
    with text_server(text.folder, tmp_path, rows=SLOTS, longest=LONGEST) as server:
        jobs = {
            "vLLM's server": (
                lambda: served(server.base_url, text.samples, text.stop_id, SLOTS, MOST),
                lambda: cpu_seconds(server),
            ),
            "slots": (lambda: decoded(backend, text.samples, sampling), time.process_time),
        }
        seconds = {name: [] for name in jobs}
        served(server.base_url, text.samples[:1], text.stop_id, 1, 1)  # its first answer takes longer
        for _ in range(TURNS):
            found = {}
            for name, (job, clock) in jobs.items():
                start = clock()
                found[name] = job()
                seconds[name].append(clock() - start)
    same = sum(one == other for one, other in zip(*found.values(), strict=True))
    with capsys.disabled():
        print(f"\n{PROMPTS} prompts, {same} answers are the same\n{table(seconds, backend.decoding.tokens)}")
    assert same >= PROMPTS // 2


def cpu_seconds(server) -> float:
    processes = psutil.Process(server.process.pid).children(recursive=True)
    return sum(sum(one.cpu_times()[:2]) for one in processes)

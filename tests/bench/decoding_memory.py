"""Rollouts of a language model in a process of its own; prints the peak of its memory above the loaded model, bytes.

    python -m tests.bench.decoding_memory generate|slots|slots_packed MODEL PROMPTS.json MOST
"""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from ds_stage2ab.rollout import hf
from tests.bench.decoding import decoded, naive, text_backend, text_sample
from tests.unit.parts import greedy_sampling

SLOTS = 8


def memory(name: str) -> int:
    """`VmRSS` is what is in memory now, `VmHWM` the most that ever was; bytes."""
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(name))
    return int(line.split()[1]) * 1024


def main(mode: str, folder: str, asked: str, most: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    stop_id = model.generation_config.eos_token_id
    model.generation_config = GenerationConfig()
    samples = [text_sample(place, prompt) for place, prompt in enumerate(json.loads(Path(asked).read_text()))]
    backend, vocabulary = text_backend(model, stop_id, SLOTS)
    if mode == "slots":
        hf.packed_linears = lambda model: nullcontext()  # the second copy of the weights is no part of the question
    Path("/proc/self/clear_refs").write_text("5")  # from here on counts the most
    before = memory("VmRSS")
    if mode == "generate":
        naive(model, samples, vocabulary, SLOTS, int(most))
    else:
        decoded(backend, samples, greedy_sampling(max_new_tokens=int(most)))
    print(memory("VmHWM") - before)


if __name__ == "__main__":
    main(*sys.argv[1:])

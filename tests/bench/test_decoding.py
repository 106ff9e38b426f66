"""Rollouts in process beside plain `generate`: the same answers, the same number of slots, in one run."""

from contextlib import nullcontext

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ds_stage2ab.codec.text import CODECS
from ds_stage2ab.data.records import read_records
from ds_stage2ab.engine.build import position_index
from ds_stage2ab.rollout.hf import HfBackend
from ds_stage2ab.tools.digit_scenes import Layout, generate
from tests.bench import decoding_pictures
from tests.bench.decoding import continuous, decoded, naive, paired, ratio, table, text_backend, text_sample
from tests.bench.language_model import write_checkpoint
from tests.parts import ROOT
from tests.unit.parts import greedy_sampling, load_bench

SLOTS, TURNS, SCENES, MOST = 8, 5, 96, 256
LAYOUT = Layout(max_digits=5, min_height=34, max_side=112)
PROMPTS, MOST_TEXT = 16, 48


@pytest.mark.bench
def test_held_out_scenes_of_the_shipped_checkpoint(shipped, tmp_path, capsys):
    bench = load_bench(shipped, num_samples=0)
    generate(tmp_path / "data", seed=7, train_scenes=1, validation_scenes=SCENES, layout=LAYOUT)
    records = read_records(tmp_path / "data" / "validation.jsonl", image_root=None, box_format="bins")
    samples = [bench.encoder.encode(record, place) for place, record in enumerate(records)]
    sampling = greedy_sampling(max_new_tokens=MOST)
    settings = {"decode_batch_size": SLOTS, "start_id": "bench", "seed": 0}

    def backend(**changes):
        return HfBackend(
            lambda: nullcontext(bench.model), bench.vocabulary, position_index(bench.model), **settings, **changes
        )

    made = []

    def first_time():
        made[:] = [backend(codec=CODECS["array"])]
        return decoded(made[0], samples, sampling)

    jobs = {
        "generate, arrival order": lambda: naive(bench.model, samples, bench.vocabulary, SLOTS, MOST),
        "slots": lambda: decoded(backend(), samples, sampling),
        "slots, drafts": first_time,
    }
    seconds = paired(bench.model, TURNS, jobs)
    share = made[0].decoding.live / made[0].decoding.tokens
    with capsys.disabled():
        print(f"\n{SCENES} scenes, {SLOTS} slots\n{table(seconds, made[0].decoding.tokens)}")
        print(f"passes per token with drafts {share:.2f}")
    assert share <= 0.62
    assert ratio(seconds["generate, arrival order"], seconds["slots, drafts"]) >= 2.5


def prompts(tokenizer) -> list[list[int]]:
    """Paragraphs of the documents, of a few to some hundred tokens, each with one of three tasks."""
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    parts = [part for part in text.split("\n\n") if 40 < len(part) < 2000]
    tasks = ("Is this about software? Say yes or no.", "Give it a title of a few words.", "Explain it to a child.")
    asked = [f"{part}\n\n{tasks[place % 3]}" for place, part in enumerate(parts[:: len(parts) // PROMPTS][:PROMPTS])]
    said = [[{"role": "user", "content": one}] for one in asked]
    return [tokenizer.apply_chat_template(one, add_generation_prompt=True, return_dict=False) for one in said]


@pytest.mark.bench
def test_prompts_of_a_language_model(tmp_path, capsys):
    """135 million parameters: products of a few rows with large weights."""
    write_checkpoint(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="sdpa").eval()
    model.generation_config = GenerationConfig()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    samples = [text_sample(place, prompt) for place, prompt in enumerate(prompts(tokenizer))]
    stop_id, sampling = tokenizer.eos_token_id, greedy_sampling(max_new_tokens=MOST_TEXT)
    backend, vocabulary = text_backend(model, stop_id, SLOTS)

    jobs = {
        "generate, arrival order": lambda: naive(model, samples, vocabulary, SLOTS, MOST_TEXT),
        "continuous batching": lambda: continuous(model, samples, stop_id, SLOTS, MOST_TEXT),
        "slots": lambda: decoded(backend, samples, sampling),
    }
    seconds = paired(model, TURNS, jobs)
    done = backend.decoding
    with capsys.disabled():
        print(f"\n{PROMPTS} prompts, {SLOTS} slots, {done.tokens} tokens\n{table(seconds, done.tokens)}")
        print(f"live slots {done.live / done.slots:.2f}, passes {done.passes}")
    assert ratio(seconds["generate, arrival order"], seconds["slots"]) >= 2.5
    assert ratio(seconds["continuous batching"], seconds["slots"]) >= 1.0


@pytest.mark.bench
def test_the_pictures_of_the_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding_pictures, "SIZES", (1, 4))
    monkeypatch.setattr(decoding_pictures, "SCENES", decoding_pictures.STEP_SAMPLES)
    monkeypatch.setattr(decoding_pictures, "TURNS", 1)
    decoding_pictures.main(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"slots.png", "decode_batch.png"}
    # by hand: slot 0 has 5, slot 1 has 2 and then 4; a chunk of two waits for 5
    assert decoding_pictures.in_slots([5, 2, 4], 2) == [(0, 0, 5), (1, 0, 2), (1, 2, 4)]
    assert decoding_pictures.in_chunks([5, 2, 4], 2) == [(0, 0, 5), (1, 0, 2), (0, 5, 4)]

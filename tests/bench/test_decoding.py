"""Rollouts in process beside plain `generate`: the same answers, the same number of slots, in one run."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from ds_stage2ab.carriers import Decoding, Sample
from ds_stage2ab.codec.text import CODECS
from ds_stage2ab.data.records import read_records
from ds_stage2ab.engine.build import position_index
from ds_stage2ab.rollout.hf import HfBackend
from ds_stage2ab.tools.digit_scenes import Layout, generate
from tests.bench import decoding_pictures, qwen_words
from tests.bench.decoding import decoded, naive, paired, ratio, table
from tests.unit.parts import greedy_sampling, load_bench

SLOTS, TURNS, SCENES, MOST = 8, 5, 96, 256
LAYOUT = Layout(max_digits=5, min_height=34, max_side=112)


def held_out(bench, folder: Path, number: int) -> list[Sample]:
    generate(folder, seed=7, train_scenes=1, validation_scenes=number, layout=LAYOUT)
    records = read_records(folder / "validation.jsonl", image_root=None, box_format="bins")
    return [bench.encoder.encode(record, place) for place, record in enumerate(records)]


def compared(bench, samples: list[Sample], turns: int) -> tuple[dict[str, list[float]], Decoding]:
    """CPU seconds of `generate`, and of the slots without drafts and with them; what the last decoding took."""
    sampling = greedy_sampling(max_new_tokens=MOST)
    settings = {"decode_batch_size": SLOTS, "start_id": "bench", "seed": 0}

    def backend(**changes):
        return HfBackend(
            lambda: nullcontext(bench.model), bench.vocabulary, position_index(bench.model), **settings, **changes
        )

    plain, drafting = backend(), backend(codec=CODECS["array"])
    jobs = {
        "generate, arrival order": lambda: naive(bench.model, samples, bench.vocabulary, SLOTS, MOST),
        "slots": lambda: decoded(plain, samples, sampling),
        "slots, drafts": lambda: decoded(drafting, samples, sampling),
    }
    return paired(bench.model, turns, jobs), drafting.decoding


@pytest.mark.bench
def test_held_out_scenes_of_the_shipped_checkpoint(shipped, tmp_path, capsys):
    bench = load_bench(shipped, num_samples=0)
    seconds, done = compared(bench, held_out(bench, tmp_path / "data", SCENES), TURNS)
    with capsys.disabled():
        print(f"\n{SCENES} scenes, {SLOTS} slots\n{table(seconds, done.tokens)}")
        print(f"passes per token with drafts {done.live / done.tokens:.2f}")
    assert done.live <= 0.62 * done.tokens
    assert ratio(seconds["generate, arrival order"], seconds["slots, drafts"]) >= 2.5


@pytest.mark.bench
def test_qwens_own_vocabulary(shipped, tmp_path, capsys):
    """The same scenes and weights, but that each token is chosen out of 152,651: nearly all of a pass is that."""
    number = qwen_words.write_checkpoint(shipped.model, tmp_path / "model")
    bench = load_bench(replace(shipped, model=tmp_path / "model"), num_samples=0)
    seconds, done = compared(bench, held_out(bench, tmp_path / "data", SCENES // 4), TURNS)
    with capsys.disabled():
        print(f"\n{number:,} parameters, {len(bench.vocabulary.token_bytes):,} tokens, {SCENES // 4} scenes")
        print(f"{table(seconds, done.tokens)}\npasses per token with drafts {done.live / done.tokens:.2f}")
    assert 20e6 <= number <= 60e6
    assert done.live <= 0.40 * done.tokens


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

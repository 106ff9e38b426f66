"""Seconds that the coordinate tokens take with Qwen's real vocabulary of 151,643 tokens, on one core."""

import hashlib
import time

import pytest

from ds_stage2ab.tools import tiny_model as tiny
from ds_stage2ab.tools.add_coord_tokens import add_coord_tokens
from tests.real_tokenizers import qwen

SMALL = tiny.TinySize(text_width=64, text_layers=1, text_mlp=32, vision_width=48, vision_layers=2, vision_mlp=32)
GOAL_S = 40
"""CPU seconds; with a look-up of the whole vocabulary for each token it were 275."""


@pytest.mark.bench
def test_a_real_vocabulary_takes_seconds(tmp_path):
    source, destination = tmp_path / "source", tmp_path / "destination"
    tokenizer = qwen(num_coordinates=0)
    tiny.build_model(tiny.build_config(tokenizer, SMALL), seed=0).save_pretrained(source)
    tokenizer.save_pretrained(source)
    begun = time.process_time()
    first = add_coord_tokens(source, destination)
    seconds = time.process_time() - begun
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in sorted(destination.iterdir())}
    print(f"{seconds:.1f} CPU s; {digests}")
    assert first == len(tokenizer)
    assert seconds < GOAL_S

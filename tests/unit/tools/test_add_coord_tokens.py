"""Coordinate tokens for any Qwen3-VL folder: exact ids, untouched old rows, smooth new ones, refusals."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from ds_stage2ab.errors import ConfigError
from ds_stage2ab.tools import tiny_model as tiny
from ds_stage2ab.tools.add_coord_tokens import (
    RAMP_AMPLITUDE,
    TOKENS,
    add_coord_tokens,
    building_folder,
    coordinate_ramp,
    enlarge,
)

SMALL = tiny.TinySize(text_width=64, text_layers=1, text_mlp=32, vision_width=48, vision_layers=2, vision_mlp=32)
TEXT = '{"objects": [{"desc": "one", "bbox_2d": [<|coord_0|>, <|coord_10|>, <|coord_100|>, <|coord_999|>]}]}'


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "model"
    tiny.build_tiny(path, seed=0, size=SMALL)
    return path


@pytest.fixture(scope="module")
def enlarged(plain, tmp_path_factory):
    path = tmp_path_factory.mktemp("enlarged") / "model"
    add_coord_tokens(plain, path)
    return path


def untied(plain, path, *, num_padding=0, max_shard_size="5GB"):
    """The same architecture with a head of its own and `num_padding` rows that no token uses."""
    tokenizer = AutoTokenizer.from_pretrained(plain)
    config = Qwen3VLForConditionalGeneration.from_pretrained(plain).config
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    config.text_config.vocab_size += num_padding
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = Qwen3VLForConditionalGeneration(config)
    model.save_pretrained(path, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(path)
    return model.eval(), len(tokenizer)


def test_each_coordinate_is_one_id_and_ids_are_consecutive(enlarged, plain):
    tokenizer, before = AutoTokenizer.from_pretrained(enlarged), len(AutoTokenizer.from_pretrained(plain))
    ids = [tokenizer.encode(token) for token in TOKENS]
    assert ids == [[before + k] for k in range(1000)]
    assert [tokenizer.decode(one) for one in ids] == list(TOKENS)


def test_text_with_coordinates_survives_and_its_other_tokens_stay(enlarged, plain):
    old, new = AutoTokenizer.from_pretrained(plain), AutoTokenizer.from_pretrained(enlarged)
    ids = new.encode(TEXT)
    assert new.decode(ids) == TEXT
    assert new.decode(ids, skip_special_tokens=True) == TEXT
    assert sum(token >= len(old) for token in ids) == 4
    for text in ("Detect every digit.", "<|coord_1000|>", '{"objects": []}', "<|im_start|>user\n<|image_pad|>"):
        assert new.encode(text) == old.encode(text)


def test_logits_of_the_old_vocabulary_are_unchanged(enlarged, plain):
    ids = torch.tensor([AutoTokenizer.from_pretrained(plain).encode("Detect every digit.")])
    with torch.no_grad():
        before = Qwen3VLForConditionalGeneration.from_pretrained(plain)(input_ids=ids).logits
        after = Qwen3VLForConditionalGeneration.from_pretrained(enlarged)(input_ids=ids).logits
    assert after.shape[-1] == before.shape[-1] + 1000
    torch.testing.assert_close(after[..., : before.shape[-1]], before, atol=1e-6, rtol=1e-6)


def test_a_tied_model_stays_tied_and_other_files_stay_as_they_are(enlarged, plain):
    model = Qwen3VLForConditionalGeneration.from_pretrained(enlarged)
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    names = {path.name for path in plain.iterdir()}
    assert {path.name for path in enlarged.iterdir()} == names
    for name in ("preprocessor_config.json", "video_preprocessor_config.json", "generation_config.json"):
        assert (enlarged / name).read_bytes() == (plain / name).read_bytes()
    templates = [AutoTokenizer.from_pretrained(folder).chat_template for folder in (plain, enlarged)]
    assert templates[0] == templates[1]


def test_untied_sharded_model_with_padding_rows(plain, tmp_path):
    model, num_tokens = untied(plain, tmp_path / "src", num_padding=300, max_shard_size="150KB")
    assert len(list((tmp_path / "src").glob("*.safetensors"))) > 1
    first = add_coord_tokens(tmp_path / "src", tmp_path / "dst")
    assert first == num_tokens  # padding rows are used before the matrix grows
    new = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "dst").eval()
    table, head = new.get_input_embeddings().weight, new.lm_head.weight
    assert table.shape[0] == head.shape[0] == num_tokens + 1000 == new.config.text_config.vocab_size
    assert table.data_ptr() != head.data_ptr()
    assert torch.equal(table[:first], model.get_input_embeddings().weight[:first])
    assert torch.equal(head[:first], model.lm_head.weight[:first])
    assert not torch.allclose(table[first:], head[first:])
    index = json.loads((tmp_path / "dst" / "model.safetensors.index.json").read_text())
    stored = [load_file(path) for path in (tmp_path / "dst").glob("*.safetensors")]
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for one in stored for t in one.values())


def test_many_padding_rows_mean_no_growth(plain, tmp_path):
    _, num_tokens = untied(plain, tmp_path / "src", num_padding=1234)
    add_coord_tokens(tmp_path / "src", tmp_path / "dst")
    config = json.loads((tmp_path / "dst" / "config.json").read_text())
    assert config["text_config"]["vocab_size"] == num_tokens + 1234


def test_new_rows_are_the_old_mean_plus_a_ramp_of_the_old_spread():
    rows = torch.randn(500, 64, generator=torch.Generator().manual_seed(1)) * 0.02 + 0.1
    new = enlarge(rows, 500)
    assert new.shape == (1500, 64)
    assert torch.equal(new[:500], rows)
    torch.testing.assert_close(new[500:].mean(0), rows.mean(0), atol=1e-5, rtol=0)
    spread = (new[500:] - rows.mean(0)).square().mean().sqrt()
    # spread of the old rows: 0.02
    assert spread.item() == pytest.approx(0.02 * RAMP_AMPLITUDE, rel=0.05)


def test_the_ramp_is_smooth_and_tells_coordinates_apart():
    ramp = coordinate_ramp(128)
    norm = ramp.norm(dim=1).mean()
    steps = (ramp[1:] - ramp[:-1]).norm(dim=1)
    assert steps.max() < 0.1 * norm  # neighbours alike
    gaps = torch.cdist(ramp, ramp) + 1e9 * torch.eye(1000)
    assert gaps.min() > 0  # no two alike
    # nearest other row is always a neighbour in k
    assert (gaps.argmin(1) - torch.arange(1000)).abs().max() == 1


def test_low_precision_rows_keep_their_dtype_and_bits():
    rows = torch.randn(300, 32, generator=torch.Generator().manual_seed(2)).bfloat16()
    new = enlarge(rows, 300)
    assert new.dtype == torch.bfloat16
    assert torch.equal(new[:300], rows)


def refused(source, destination, match):
    with pytest.raises(ConfigError, match=match):
        add_coord_tokens(source, destination)
    assert not destination.exists()
    assert not list(destination.parent.glob(f".{destination.name}*"))


def test_a_source_that_has_the_tokens_is_refused(enlarged, tmp_path):
    refused(enlarged, tmp_path / "dst", "already has 1000 of the coordinate tokens")


def test_an_existing_destination_is_refused_and_kept(plain, tmp_path):
    (tmp_path / "dst").mkdir()
    (tmp_path / "dst" / "mine").write_text("x")
    with pytest.raises(ConfigError, match="exists already"):
        add_coord_tokens(plain, tmp_path / "dst")
    assert (tmp_path / "dst" / "mine").read_text() == "x"


def test_a_source_that_is_no_qwen3_vl_folder_is_refused(plain, tmp_path):
    refused(tmp_path / "nowhere", tmp_path / "dst", "no checkpoint folder")
    source = tmp_path / "src"
    source.mkdir()
    (source / "config.json").write_text("{")
    refused(source, tmp_path / "dst", "is no JSON")
    for kind in ("llama", "qwen3_vl_moe"):  # the second has such tables too, and training cannot load it
        (source / "config.json").write_text(json.dumps({"model_type": kind}))
        refused(source, tmp_path / "dst", f"model_type is '{kind}', and training loads qwen3_vl alone")
    (source / "config.json").write_text((plain / "config.json").read_text())
    refused(source, tmp_path / "dst", r"no \*\.safetensors file")


def test_the_whole_vocabulary_is_asked_for_once(plain, tmp_path, monkeypatch):
    """Of a real one it takes a quarter of a second, and there are 1,000 tokens to look up."""
    calls, get_vocab = [], PreTrainedTokenizerFast.get_vocab
    monkeypatch.setattr(PreTrainedTokenizerFast, "get_vocab", lambda self: calls.append(self) or get_vocab(self))
    add_coord_tokens(plain, tmp_path / "dst")
    assert len(calls) <= 3  # ours, and those of transformers while it saves


def test_each_stage_is_told_of(plain, tmp_path):
    untied(plain, tmp_path / "src", max_shard_size="100KB")
    files = sorted(path.name for path in (tmp_path / "src").glob("*.safetensors"))
    assert len(files) > 1
    told = []
    add_coord_tokens(tmp_path / "src", tmp_path / "dst", told.append)
    assert told == ["tokenizer: adding the 1,000 coordinate tokens"] + [
        f"weights: file {number} of {len(files)}, {name}" for number, name in enumerate(files, 1)
    ]


KILLED = """
import os, signal, sys
from pathlib import Path
from ds_stage2ab.tools.add_coord_tokens import add_coord_tokens
add_coord_tokens(Path(sys.argv[1]), Path(sys.argv[2]), lambda line: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_what_a_killed_call_left_goes_with_the_next(plain, tmp_path):
    words = [sys.executable, "-c", KILLED, str(plain), str(tmp_path / "dst")]
    assert subprocess.run(words, check=False, timeout=120).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()  # everything but tokenizer and weights
    (left / "of another source").write_text("x")
    add_coord_tokens(plain, tmp_path / "dst")
    assert [path.name for path in tmp_path.iterdir()] == ["dst"]
    assert {path.name for path in (tmp_path / "dst").iterdir()} == {path.name for path in plain.iterdir()}


def test_a_call_that_is_at_work_is_left_alone(plain, tmp_path):
    with building_folder(tmp_path / "dst") as building:
        (building / "half").write_text("x")
        with pytest.raises(ConfigError, match="another process is making this folder"):
            add_coord_tokens(plain, tmp_path / "dst")
        assert (building / "half").read_text() == "x"
    add_coord_tokens(plain, tmp_path / "dst")

"""The small Qwen3-VL: an ordinary Hugging Face folder with an exact tokenizer and no resampling."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import AddedToken
from transformers import AutoImageProcessor, AutoTokenizer, Qwen3VLForConditionalGeneration

from ds_stage2ab.carriers import Truth
from ds_stage2ab.codec.text import CODECS, answer_pieces
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.errors import EXIT_ENVIRONMENT, DataError, exit_code
from ds_stage2ab.tools import digit_scenes as digits
from ds_stage2ab.tools import tiny_model as tiny
from tests.real_tokenizers import qwen

ANSWER = '{"objects": [{"desc": "three", "bbox_2d": []}, {"desc": "black cat", "bbox_2d": []}]}'
CHAT = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Detect every digit."}]}]
PROMPT = (
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Detect every digit.<|im_end|>\n"
    "<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "model"
    tiny.build_tiny(path, seed=0)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def test_any_text_survives_the_tokenizer(tokenizer):
    for text in (ANSWER, '{"objects": []}', "caf\u00e9 \u4e2d\u6587 \U0001f600\t\n  x", '"]}, {"a": [1, {}]}', PROMPT):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("form", [form for form in CODECS if form != "array_scored"])
def test_answers_have_the_tokens_that_qwens_vocabulary_gives(form):
    """So what merges across a border there (`]},`, ` [{"`, `}}`) merges here too.

    But for `],`, which Qwen's has and an answer with scores alone needs: the shipped checkpoint has no row for it.
    """
    small, large = tiny.build_tokenizer(), qwen()
    small.add_tokens([AddedToken(f"<|coord_{k}|>", special=False, normalized=False) for k in range(1000)])
    vocabulary = Vocabulary.from_tokenizer(small)
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    objects = [Truth(desc=name, box=(k, k, k + 9, k + 9)) for k, name in enumerate(names)]
    for count in (0, 1, 10):
        pieces = answer_pieces(objects[:count], vocabulary, CODECS[form])
        text = "".join(piece.text for piece in pieces)
        one, other = ([tokenizer.decode([token]) for token in tokenizer.encode(text)] for tokenizer in (small, large))
        assert one == other
    lines = ["\n", "nine"]
    merged = {"array": ["]},", ' [{"'], "keyed": ["},", "}}"], "compact": lines, "compact_scored": lines}
    assert {*merged[form]} <= {*one}


def test_special_tokens_are_single_and_distinct(tokenizer):
    ids = [tokenizer.encode(token) for token in tiny.SPECIAL]
    assert all(len(one) == 1 for one in ids)
    assert len({one[0] for one in ids}) == len(tiny.SPECIAL)


def test_chat_template_renders_chatml_with_the_picture(tokenizer):
    assert tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) == PROMPT
    turns = [{"role": "system", "content": "Be brief."}, *CHAT, {"role": "assistant", "content": "{}"}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    assert rendered.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert rendered.endswith("<|im_start|>assistant\n{}<|im_end|>\n")


def test_config_names_the_tokenizers_ids(folder, tokenizer):
    config = json.loads((folder / "config.json").read_text())
    for key, token in (
        ("image_token_id", "<|image_pad|>"),
        ("video_token_id", "<|video_pad|>"),
        ("vision_start_token_id", "<|vision_start|>"),
        ("vision_end_token_id", "<|vision_end|>"),
    ):
        assert config[key] == tokenizer.convert_tokens_to_ids(token)
    assert config["text_config"]["vocab_size"] == len(tokenizer)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in generation["eos_token_id"]


def test_pictures_of_every_digit_size_are_not_resampled(folder):
    processor = AutoImageProcessor.from_pretrained(folder)
    rng = np.random.default_rng(0)
    for width in digits.SIDES:
        for height in digits.SIDES:
            grey = rng.integers(0, 256, (height, width), dtype=np.uint8)
            found = processor(images=[Image.fromarray(grey, mode="L")], return_tensors="pt")
            assert found["image_grid_thw"].tolist() == [[1, height // 8, width // 8]]
            # first patch, first channel and frame: 8 x 8 pixels of the corner, (v / 255 - 0.5) / 0.5
            corner = found["pixel_values"][0].reshape(3, 2, 8, 8)[0, 0]
            wanted = torch.from_numpy(grey[:8, :8].astype(np.float32)) / 127.5 - 1.0
            torch.testing.assert_close(corner, wanted, atol=1e-5, rtol=0)


def test_generates_from_a_picture_after_reloading(folder, tokenizer):
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder)
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert 1_000_000 < sum(parameter.numel() for parameter in model.parameters()) < 5_000_000
    picture = Image.new("RGB", (96, 80), (9, 99, 199))
    vision = AutoImageProcessor.from_pretrained(folder)(images=[picture], return_tensors="pt")
    # 96 x 80 pixels: 12 x 10 patches, merged 2 x 2: 30 tokens
    ids = tokenizer.encode(PROMPT.replace("<|image_pad|>", "<|image_pad|>" * 30), return_tensors="pt")
    types = (ids == model.config.image_token_id).int()
    written = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=types, max_new_tokens=3, **vision
    )
    assert written.shape[1] > ids.shape[1]
    other = AutoImageProcessor.from_pretrained(folder)(
        images=[Image.new("RGB", (96, 80), (199, 99, 9))], return_tensors="pt"
    )
    with torch.no_grad():
        one = model(input_ids=ids, mm_token_type_ids=types, **vision).logits[0, -1]
        two = model(input_ids=ids, mm_token_type_ids=types, **other).logits[0, -1]
    assert not torch.equal(one, two)  # the picture reaches the answer


def test_the_seed_decides_the_weights(folder, tmp_path):
    before = torch.get_rng_state()
    tiny.build_tiny(tmp_path / "same", seed=0)
    tiny.build_tiny(tmp_path / "other", seed=1)
    assert torch.equal(before, torch.get_rng_state())
    folders = (folder, tmp_path / "same", tmp_path / "other")
    first, same, other = (load_file(path / "model.safetensors") for path in folders)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["model.visual.pos_embed.weight"], other["model.visual.pos_embed.weight"])
    assert (folder / "tokenizer.json").read_bytes() == (tmp_path / "other" / "tokenizer.json").read_bytes()


def test_neighbouring_vision_positions_start_alike():
    table = tiny.smooth_positions(96, torch.Generator().manual_seed(0)).reshape(16, 16, 96)
    near = (table[:, 1:] - table[:, :-1]).norm(dim=-1).mean()
    far = (table[:, 8:] - table[:, :8]).norm(dim=-1).mean()
    assert near < 0.8 * far


@pytest.mark.parametrize("main", [tiny.main, digits.main])
def test_a_place_that_cannot_be_written_is_told(main, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "file" / "folder"
    assert main(["--out", str(out)]) == EXIT_ENVIRONMENT
    said = capsys.readouterr().err
    assert said.startswith(f"{out}: cannot be written: ") and "fix: give a path" in said


def test_an_existing_folder_is_refused(folder, capsys):
    with pytest.raises(DataError, match="exists already"):
        tiny.build_tiny(folder, seed=0)
    assert tiny.main(["--out", str(folder)]) == exit_code(DataError(""))
    assert "exists already" in capsys.readouterr().err

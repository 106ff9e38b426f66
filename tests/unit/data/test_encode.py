"""Record -> sample on the tiny model's own tokenizer and image processor."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

from ds_stage2ab.carriers import Record, Truth
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.data.encode import Encoder
from ds_stage2ab.errors import EXIT_CONFIG, ConfigError, DataError

USER = "Detect every digit."


@pytest.fixture(scope="module")
def tokenizer(quickstart):
    return AutoTokenizer.from_pretrained(quickstart.model)


@pytest.fixture(scope="module")
def encoder(quickstart, tokenizer):
    """Makes an encoder with the given prompts."""
    processor = Qwen2VLImageProcessorPil.from_pretrained(quickstart.model)

    def build(system_prompt=None, user_prompt=USER):
        vocabulary = Vocabulary.from_tokenizer(tokenizer)
        return Encoder(tokenizer, processor, vocabulary, system_prompt=system_prompt, user_prompt=user_prompt)

    return build


@pytest.fixture
def record(tmp_path):
    """A grey picture of 96 x 80 pixels: a dark half and a bright half."""
    picture = Image.new("L", (96, 80), 51)
    picture.paste(255, (48, 0, 96, 80))
    picture.save(tmp_path / "a.png")
    objects = (Truth(desc="one", box=(1, 2, 3, 4)),)
    return Record(id="a", image=tmp_path / "a.png", width=96, height=80, objects=objects, where="train.jsonl:1")


def test_the_prompt_is_the_template_with_a_token_per_merged_patch(encoder, tokenizer, record):
    sample = encoder().encode(record, draw=7)
    # 96 x 80 pixels in patches of 8: 12 x 10, merged 2 x 2: 6 * 5 = 30 tokens
    assert sample.vision.image_grid_thw.tolist() == [[1, 10, 12]]
    assert tokenizer.decode(sample.prompt_ids) == (
        "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * 30 + "<|vision_end|>Detect every digit.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_system_prompt_is_a_turn_of_its_own(encoder, tokenizer, record):
    with_system = tokenizer.decode(encoder(system_prompt="You are a helpful assistant.").encode(record, 0).prompt_ids)
    assert with_system.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n")
    without = tokenizer.decode(encoder().encode(record, 0).prompt_ids)
    assert with_system.endswith(without)
    assert "system" not in without


@pytest.mark.parametrize(
    "prompts",
    [{"user_prompt": "Look at <|image_pad|> again."}, {"system_prompt": "An image is <|image_pad|>."}],
)
def test_an_image_token_in_a_prompt_is_refused(encoder, prompts):
    with pytest.raises(ConfigError, match="holds 2 image placeholders, it must hold exactly one") as caught:
        encoder(**prompts)
    assert caught.value.code == EXIT_CONFIG
    assert "remove image tokens from the prompts" in caught.value.fix


def test_the_sample_carries_the_file_and_the_record(encoder, record):
    sample = encoder().encode(record, draw=7)
    assert sample.image == record.image.read_bytes()
    assert (sample.id, sample.draw, sample.width, sample.height) == ("a", 7, 96, 80)
    assert sample.objects == record.objects


def test_a_grey_picture_becomes_three_equal_channels(encoder, record):
    pixels = encoder().encode(record, 0).vision.pixel_values
    # a row per patch: 3 channels x 2 frames x 8 x 8 pixels
    assert pixels.shape == (120, 384)
    patches = pixels.reshape(120, 3, 2, 8, 8)
    # (51 / 255 - 0.5) / 0.5 = -0.6 on the dark half, (255 / 255 - 0.5) / 0.5 = 1 on the bright half: 60 patches each
    means = patches.mean(dim=(2, 3, 4))
    torch.testing.assert_close(means[:, 0], means[:, 1])
    torch.testing.assert_close(means[:, 0], means[:, 2])
    dark = torch.isclose(means[:, 0], torch.tensor(-0.6), atol=1e-5)
    bright = torch.isclose(means[:, 0], torch.tensor(1.0), atol=1e-5)
    assert (int(dark.sum()), int(bright.sum())) == (60, 60)


def test_an_image_of_another_size_is_refused(encoder, record):
    with pytest.raises(DataError, match=r"is 96 x 80 pixels .* the record says 80 x 96"):
        encoder().encode(replace(record, width=80, height=96), 0)


@pytest.mark.parametrize("size", [(96, 80), (80, 112), (100, 75)])
def test_prompt_length_is_known_from_the_size_alone(encoder, tmp_path, size):
    Image.new("L", size, 51).save(tmp_path / "b.png")
    record = Record(id="b", image=tmp_path / "b.png", width=size[0], height=size[1], objects=(), where="b:1")
    assert encoder().prompt_length(*size) == len(encoder().encode(record, 0).prompt_ids)


def test_the_largest_image_that_can_be_read(encoder, record, tmp_path):
    encode = encoder()
    small = replace(record, id="small", image=tmp_path / "small.png", height=64)
    Image.new("L", (96, 64)).save(small.image)
    broken = replace(record, id="broken", image=tmp_path / "broken.png", height=96)
    broken.image.write_bytes(record.image.read_bytes()[:60])
    assert encode.largest([small, record], -1, skip_bad=False).id == record.id
    assert encode.largest([small, broken, record], -1, skip_bad=True).id == record.id
    with pytest.raises(DataError, match=r"broken\.png"):
        encode.largest([small, broken, record], -1, skip_bad=False)
    with pytest.raises(DataError, match="no record has an image that can be read"):
        encode.largest([broken], -1, skip_bad=True)


def test_whatever_the_image_processor_refuses_is_the_samples_fault(encoder, record, monkeypatch):
    """Its settings are checked with the folder; a sample must not end in its traceback all the same."""
    built = encoder()
    monkeypatch.setattr(built.image_processor, "size", {"height": 8, "width": 8})
    with pytest.raises(DataError, match=r"the image processor refuses image .*a\.png: ") as caught:
        built.encode(record, draw=0)
    assert caught.value.where == "train.jsonl:1"


def test_a_size_that_the_processor_refuses_has_no_prompt(encoder):
    assert (encoder().prompt_length(2, 600), encoder().prompt_length(2, 400) > 0) == (0, True)


def test_the_object_of_dummy_packs_is_one_that_the_data_describe(encoder, record):
    """A tokenizer may have any word of ours as an added token, and no answer can hold one."""
    negative = replace(record, objects=())
    assert encoder().blank([negative, record]).objects[0].desc == "one"
    assert encoder().blank([negative]).objects[0].desc == "object"  # there is no answer with a word of the data

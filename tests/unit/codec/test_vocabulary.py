import pickle

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.errors import EnvironmentFault
from tests.unit.conftest import build_tokenizer

ALL = [f"<|coord_{k}|>" for k in range(1000)]


def test_every_text_token_has_its_bytes(tokenizer, vocabulary):
    text = "caf\u00e9 \u4e2d\u6587 \U0001f600\n\t\x7f"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(vocabulary.bytes_of(token) for token in ids) == text.encode()


def test_a_token_may_hold_half_a_character(vocabulary):
    # U+1F600 is F0 9F 98 80 and occurs nowhere in the corpus: four tokens of one byte.
    ids = vocabulary.encode("\U0001f600")
    assert [vocabulary.bytes_of(token) for token in ids] == [b"\xf0", b"\x9f", b"\x98", b"\x80"]


def test_added_tokens_are_ids_and_not_text(tokenizer, vocabulary):
    for text in ("<|im_end|>", "<|image_pad|>", "<think>", "<|coord_7|>"):
        assert vocabulary.bytes_of(tokenizer.convert_tokens_to_ids(text)) is None
    assert vocabulary.bytes_of(10**6) is None  # a padded embedding row without a token


def test_ids_by_name(tokenizer, vocabulary):
    assert vocabulary.coordinate_ids[7] == tokenizer.convert_tokens_to_ids("<|coord_7|>")
    assert vocabulary.coordinate_bins[vocabulary.coordinate_ids[999]] == 999
    assert len(vocabulary.coordinate_bins) == 1000
    assert vocabulary.stop_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert vocabulary.image_id == tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert len(vocabulary.vision_ids) == 3


def test_every_byte_has_a_token(vocabulary):
    assert [vocabulary.bytes_of(token) for token in vocabulary.byte_ids] == [bytes([byte]) for byte in range(256)]


def test_coordinate_tokens_are_counted_by_their_text(vocabulary):
    ids = [*vocabulary.encode("a"), vocabulary.coordinate_ids[12], vocabulary.stop_id]
    assert vocabulary.written_all(ids) == b"a<|coord_12|>"


def test_it_travels_to_worker_processes(vocabulary):
    copy = pickle.loads(pickle.dumps(vocabulary))
    assert copy == vocabulary
    assert copy.encode("black cat") == vocabulary.encode("black cat")


def test_missing_coordinate_tokens_name_the_command():
    with pytest.raises(EnvironmentFault) as caught:
        Vocabulary.from_tokenizer(build_tokenizer(ALL[:999]))
    assert "lacks 1 of the 1000 coordinate tokens (first: <|coord_999|>)" in str(caught.value)
    assert "ds-stage2ab add-coord-tokens" in caught.value.fix


def test_no_coordinate_tokens_at_all():
    with pytest.raises(EnvironmentFault, match="lacks 1000 of the 1000"):
        Vocabulary.from_tokenizer(build_tokenizer([]))


def test_a_coordinate_token_inside_another_added_token_is_refused():
    # The longest added token wins: "<|coord_0|><|coord_1|>" would be one id.
    with pytest.raises(EnvironmentFault, match="not distinct single ids"):
        Vocabulary.from_tokenizer(build_tokenizer([*ALL, "<|coord_0|><|coord_1|>"]))


def test_a_tokenizer_that_adds_a_space_is_refused():
    tokenizer = build_tokenizer(ALL)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(EnvironmentFault, match="changes text"):
        Vocabulary.from_tokenizer(tokenizer)


def test_another_kind_of_tokenizer_is_refused():
    words = {"[UNK]": 0, "\u2581cat": 1}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="[UNK]")))
    tokenizer.add_tokens(ALL)
    with pytest.raises(EnvironmentFault, match="neither a byte-level BPE nor"):
        Vocabulary.from_tokenizer(tokenizer)


def test_a_missing_stop_token_is_refused():
    backend = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(_alphabet())}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_tokens(ALL)
    with pytest.raises(EnvironmentFault, match=r"no token <\|im_end\|>"):
        Vocabulary.from_tokenizer(tokenizer)


def test_an_incomplete_byte_alphabet_is_refused():
    backend = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(_alphabet()[:-1])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_tokens(ALL)
    with pytest.raises(EnvironmentFault, match="no token for 1 of the 256 bytes"):
        Vocabulary.from_tokenizer(tokenizer)


def _alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())

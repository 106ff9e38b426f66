"""A tokenizer of SentencePiece's kind: U+2581 is a blank, and bytes that no token spells have tokens of their own."""

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
from transformers import PreTrainedTokenizerFast

from ds_stage2ab.carriers import Truth
from ds_stage2ab.codec.added_tokens import unwritable
from ds_stage2ab.codec.text import CODECS, encode_answer
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.errors import EnvironmentFault
from ds_stage2ab.matching.parse import parse_rollout
from tests.unit.conftest import CORPUS, SPECIALS

BLANK = "\u2581"
DESCS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=BLANK), min_size=1, max_size=8)
BOX = (1, 2, 3, 4)


def build(*, num_bytes: int = 256, prefix: str = "") -> PreTrainedTokenizerFast:
    """BPE with byte fallback, as Gemma's; `prefix` is put before every text, as Llama 2 does."""
    steps = [*([normalizers.Prepend(prefix)] if prefix else []), normalizers.Replace(" ", BLANK)]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Sequence(steps)
    trained.train_from_iterator(CORPUS * 3, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    parts = json.loads(trained.to_str())["model"]
    vocab = dict(parts["vocab"])
    for text in ("<unk>", *(f"<0x{byte:02X}>" for byte in range(num_bytes))):
        vocab[text] = len(vocab)
    merges = [tuple(merge) for merge in parts["merges"]]
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = trained.normalizer
    backend.decoder = decoders.Sequence([decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    backend.add_tokens([AddedToken(f"<|coord_{k}|>", special=False, normalized=False) for k in range(1000)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build()


@pytest.fixture(scope="module")
def vocabulary(tokenizer) -> Vocabulary:
    return Vocabulary.from_tokenizer(tokenizer)


def test_every_token_has_its_bytes(tokenizer, vocabulary):
    text = "black cat caf\u00e9 \U0001f600\n  ]}"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(vocabulary.bytes_of(token) for token in ids) == text.encode()
    # U+1F600 is F0 9F 98 80 and occurs nowhere in the corpus: one byte token each.
    smile = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "\U0001f600".encode()]
    assert [ids[place : place + 4] for place in range(len(ids)) if ids[place] == smile[0]] == [smile]
    assert vocabulary.bytes_of(tokenizer.convert_tokens_to_ids(BLANK)) == b" "
    assert vocabulary.bytes_of(tokenizer.convert_tokens_to_ids("<unk>")) is None


def test_every_byte_has_a_token(vocabulary):
    assert [vocabulary.bytes_of(token) for token in vocabulary.byte_ids] == [bytes([byte]) for byte in range(256)]


@pytest.mark.parametrize("name", CODECS)
@given(descs=st.lists(DESCS, max_size=3))
def test_what_was_encoded_is_read_back(vocabulary, name, descs):
    written = [desc + "x" for desc in descs]
    assume(not any(unwritable(vocabulary.normalise(desc), (), name) for desc in written))
    truths = [Truth(desc=desc, box=BOX) for desc in written]
    answer = encode_answer(truths, vocabulary, CODECS[name])
    parsed = parse_rollout(answer.ids[:-1].tolist(), vocabulary, CODECS[name])
    assert [found.desc for found in parsed.objects] == [truth.desc for truth in truths]
    assert parsed.dropped == ()


def test_a_character_cut_in_half_ends_the_scan(vocabulary):
    ids = [*vocabulary.encode('{"objects": [{"desc": "'), vocabulary.byte_ids[0xF0], *vocabulary.encode('"')]
    assert parse_rollout(ids, vocabulary, CODECS["array"]).state == "malformed"


def test_the_sign_of_the_blank_itself_becomes_a_blank(vocabulary):
    # The tokenizer cannot tell it from a blank: a description is written in the tokenizer's own normal form.
    answer = encode_answer([Truth(desc=f"a{BLANK}b", box=BOX)], vocabulary, CODECS["array"])
    assert b'"a b"' in vocabulary.written_all(answer.ids.tolist())


def test_a_tokenizer_that_puts_a_blank_before_every_text_is_refused():
    with pytest.raises(EnvironmentFault, match="changes text"):
        Vocabulary.from_tokenizer(build(prefix=BLANK))


def test_without_a_token_for_each_byte_it_is_refused():
    with pytest.raises(EnvironmentFault, match="neither a byte-level BPE nor of SentencePiece's kind"):
        Vocabulary.from_tokenizer(build(num_bytes=255))

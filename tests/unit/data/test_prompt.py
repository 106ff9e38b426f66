"""Chat templates that a checkpoint folder may have: what is wrong with one is said with the folder and what to do."""

import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ds_stage2ab.carriers import Record, Truth
from ds_stage2ab.codec.text import encode_answer, get_codec
from ds_stage2ab.codec.vocabulary import IMAGE_TOKEN, Vocabulary
from ds_stage2ab.data.datasets import assert_answerable
from ds_stage2ab.data.prompt import image_place, prompt_text, prompt_warnings
from ds_stage2ab.errors import ConfigError, DataError, EnvironmentFault

USER, SYSTEM = "Detect every digit.", "You are a detector."
# The image's text where content is a list: templates for text join strings, or print what they are given.
REFUSES_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


@pytest.fixture
def tokenizer(quickstart):
    return AutoTokenizer.from_pretrained(quickstart.model)


def encoded(tokenizer, system_prompt=None):
    text = prompt_text(tokenizer, system_prompt, USER)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    return image_place(tokenizer.encode(text, add_special_tokens=False), image_id, str(tokenizer.name_or_path))


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "cannot be applied: ValueError"),
        ("{% for message in messages %}", "cannot be applied: TemplateSyntaxError"),
        ("{{ messages[3].role }}", "cannot be applied: UndefinedError"),
        ("{% for m in messages %}{{ '<|im_start|>' + m.content }}{% endfor %}", "cannot be applied: TypeError"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "that of a model for text"),
        ("{{ messages[-1].content[1].text }}", "that of a model for text"),
        ("<|image_pad|>", "leaves out data.user_prompt"),
    ],
)
def test_a_template_that_does_not_fit_is_the_folders_fault(tokenizer, template, words):
    tokenizer.chat_template = template
    with pytest.raises(EnvironmentFault) as caught:
        encoded(tokenizer)
    assert words in caught.value.why
    assert caught.value.where == str(tokenizer.name_or_path)
    assert "copy chat_template.jinja from" in caught.value.fix


def test_a_template_without_a_system_turn_has_a_key_to_set(tokenizer):
    own = tokenizer.chat_template
    tokenizer.chat_template = REFUSES_SYSTEM + own
    with pytest.raises(ConfigError, match="System role not supported") as caught:
        encoded(tokenizer, SYSTEM)
    assert (caught.value.where, "set data.system_prompt: null" in caught.value.fix) == ("data.system_prompt", True)
    assert encoded(tokenizer, None) > 0  # the remedy, followed


def test_a_system_turn_that_is_left_out_is_told(tokenizer):
    tokenizer.chat_template = "{% set messages = messages[-1:] %}" + tokenizer.chat_template
    with pytest.raises(EnvironmentFault, match="leaves out data\\.system_prompt"):
        encoded(tokenizer, SYSTEM)
    assert encoded(tokenizer, None) > 0


def test_a_thought_that_is_opened_is_named(tokenizer):
    own = tokenizer.chat_template
    assert prompt_warnings(prompt_text(tokenizer, None, USER)) == ()
    tokenizer.chat_template = own + r"{{ '<think>\n' }}"
    (warning,) = prompt_warnings(prompt_text(tokenizer, None, USER))
    assert "opens a thought" in warning and r"<think>\n" in warning
    tokenizer.chat_template = own + r"{{ '<think>\n\n</think>\n\n' }}"  # closed: the answer follows
    assert prompt_warnings(prompt_text(tokenizer, None, USER)) == ()


@pytest.mark.parametrize(("text", "desc"), [("person", "a person, far"), ("[SEP]", "sign [SEP]")])
def test_a_description_that_is_an_added_token_is_refused_at_the_start(tokenizer, text, desc):
    names = ("cat", desc, "<|im_end|>")
    boxes = [Truth(desc=name, box=(0, 0, 9, 9)) for name in names]
    records = [
        Record(id=str(n), image=Path("a.png"), width=64, height=48, objects=(box,), where=f"train.jsonl:{n}")
        for n, box in enumerate(boxes, start=1)
    ]
    assert_answerable(records, Vocabulary.from_tokenizer(tokenizer), get_codec("array"))
    tokenizer.add_tokens([text])
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    with pytest.raises(DataError, match=f"holds {re.escape(repr(text))}, which is an added token") as caught:
        assert_answerable(records, vocabulary, get_codec("array"))
    assert caught.value.where == "train.jsonl:2"
    with pytest.raises(DataError, match="cannot write this answer exactly"):  # so it was found before, in mid-run
        encode_answer(records[1].objects, vocabulary, get_codec("array"))

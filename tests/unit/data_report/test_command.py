"""`ds-stage2ab data`: tables, tokens against the caps, and one page that needs nothing else."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from transformers import AutoTokenizer

from ds_stage2ab.cli import main
from ds_stage2ab.codec.text import encode_answer, get_codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.config.load import load_config
from ds_stage2ab.data.records import read_records
from ds_stage2ab.data_report.lengths import ANSWER, BOTH, PROMPT, token_counter
from tests.unit.formats.sets import image

FORGED = "<b>x</b>\x1b[2J"


@pytest.fixture
def config(quickstart, tmp_path):
    """A config of the tiny model and the digit scenes, with caps that some samples exceed."""
    file = tmp_path / "my.yaml"
    values = {
        "model": {"path": str(quickstart.model), "precision": "fp32"},
        "data": {
            "train": str(quickstart.data / "train.jsonl"),
            "validation": str(quickstart.data / "validation.jsonl"),
            "user_prompt": "Detect every digit.",
        },
        "training": {"effective_batch_size": 4, "global_max_length": 512},
        "stage2_ab": {"schedule": {"b_ratio": 0}},
        "custom": {"extra": {"rollout_matching": {"decode_batch_size": 4, "max_new_tokens": 40}}},
    }
    file.write_text(json.dumps(values))
    return file


def test_tokens_are_those_of_a_run(config, quickstart):
    """The prompt as the run encodes it, image included; the answer as Channel A teaches it, with the end of turn."""
    from tests.unit.parts import load_bench

    loaded = load_config(config).config
    records = read_records(loaded.data.train, image_root=None, box_format="bins")[:8]
    records[3] = replace(records[3], prompt="Where is the largest of these digits?")
    measures = token_counter(loaded).measures(records)
    encoder = load_bench(quickstart, num_samples=1).encoder
    assert measures[PROMPT].tolist() == [len(encoder.encode(one, 0).prompt_ids) for one in records]
    vocabulary = Vocabulary.from_tokenizer(AutoTokenizer.from_pretrained(quickstart.model))
    answers = [len(encode_answer(one.objects, vocabulary, get_codec("array")).ids) for one in records]
    assert measures[ANSWER].tolist() == answers
    assert (measures[BOTH] == measures[PROMPT] + measures[ANSWER]).all()


class Page(HTMLParser):
    """Notes the tags, the addresses and the text of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.text.append(data)


def test_a_config_gives_tables_findings_and_a_page(config, tmp_path, capsys):
    assert main(["data", str(config), "--html", str(tmp_path / "data.html")]) == 0
    said = capsys.readouterr().out
    assert "validation.jsonl: 12 images" in said
    assert re.search(r"answer, tokens +\d+ +\d+ +\d+ +\d+ +\d+", said)
    assert re.search(r"warning: .*train.jsonl: \d+ true answers above .*max_new_tokens of 40 tokens: set", said)
    text = (tmp_path / "data.html").read_text()
    page = Page()
    page.feed(text)
    # nothing is loaded from anywhere: pictures are inside, and within a chart its own parts are referred to
    assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in page.addresses)
    assert "script" not in page.tags and "link" not in page.tags and "url(http" not in text
    # nine measures and the classes for each of the two sets; 12 held-out pictures, and up to 24 of the others
    assert page.tags.count("svg") == 2 * (9 + 1)
    assert 12 + 18 <= page.tags.count("img") <= 12 + 24
    assert len(text) < 6_000_000
    assert "mathdefault" not in text  # text of a chart stays text: TeX would be shown as it is


def test_a_jsonl_of_another_form(tmp_path, capsys):
    image(tmp_path / "a.png", mode="RGB")
    line = {"images": ["a.png"], "width": 333, "height": 111, "objects": [{"desc": FORGED, "bbox_2d": [0, 0, 1, 0.5]}]}
    line["prompt"] = "Where?"
    (tmp_path / "set.jsonl").write_text(json.dumps(line))
    arguments = ["data", str(tmp_path / "set.jsonl"), "--html", str(tmp_path / "data.html")]
    assert main([*arguments, "--box-format", "fraction"]) == 0
    said = capsys.readouterr().out
    assert "set.jsonl: 1 image, 0 without objects; 1 object of 1 description; 1 with a prompt of their own\n" in said
    # 999 bins wide and 500 high; 2 as wide as high, times 3
    assert re.search(r"box aspect, width / height +5.994", said)
    assert r"<b>x</b>\x1b[2J" in said
    text = (tmp_path / "data.html").read_text()
    assert FORGED not in text and "<b>x</b>" not in text and "&lt;b&gt;x" in text
    assert main([*arguments, "--box-format", "fraction"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_what_is_refused_or_left_out(config, tmp_path, capsys):
    (tmp_path / "set.jsonl").write_text('{"images": []}')
    assert main(["data", str(tmp_path / "set.jsonl")]) == 3
    assert main(["data", str(tmp_path / "none.yaml")]) == 2
    assert "set.jsonl:1" in capsys.readouterr().err
    assert main(["data", str(config), "--set", "model.path=nowhere"]) == 0
    assert "nowhere is not on this machine: tokens are not counted" in capsys.readouterr().out


def test_the_caps(config, capsys):
    assert main(["data", str(config), "--set", "training.global_max_length=60"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"\d+ samples above training.global_max_length of 60 tokens, the longest has \d+: set", said)
    assert "together more than training.global_max_length 60" in said

"""The program of the runbook's last section: a finished folder answers without this package as with it."""

import re
from contextlib import nullcontext
from importlib.util import find_spec

import pytest
from transformers import AutoProcessor

from ds_stage2ab.engine.build import position_index
from ds_stage2ab.rollout.hf import HfBackend
from tests.parts import ROOT
from tests.unit.parts import greedy_sampling, load_bench

RUNBOOK = (ROOT / "docs" / "training" / "STAGE2_RUNBOOK.md").read_text(encoding="utf-8")
FOLDER, IMAGE = '"path/to/hf"', '"path/to/image.png"'


def test_the_program_of_the_runbook_answers_as_the_rollouts_do(shipped, tmp_path, capsys):
    (text,) = [text for text in re.findall(r"```python\n(.*?)```", RUNBOOK, re.DOTALL) if "generate(" in text]
    assert FOLDER in text and IMAGE in text
    bench = load_bench(shipped, num_samples=1)
    image = tmp_path / "image.png"
    image.write_bytes(bench.samples[0].image)
    capsys.readouterr()
    exec(text.replace(FOLDER, repr(str(shipped.model))).replace(IMAGE, repr(str(image))), {})
    said = capsys.readouterr().out
    settings = {"decode_batch_size": 1, "start_id": "x", "seed": 0}
    backend = HfBackend(lambda: nullcontext(bench.model), bench.vocabulary, position_index(bench.model), **settings)
    with backend.current_weights(0):
        (ours,) = backend.generate(bench.samples, greedy_sampling(max_new_tokens=512), finished_steps=0)
    assert ours.finish == "stop" and len(ours.response_ids) > 10
    assert said == bench.vocabulary.written_all(ours.response_ids).decode() + "\n"


def test_why_it_does_not_use_the_processor(shipped):
    """If this begins to work, the runbook's section can say so."""
    assert find_spec("torchvision") is None, "the tests' environment has no torchvision"
    with pytest.raises(ImportError, match="Torchvision"):
        AutoProcessor.from_pretrained(shipped.model)

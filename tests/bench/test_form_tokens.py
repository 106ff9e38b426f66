"""What an object takes in each answer format: tokens with Qwen's vocabulary, seconds and memory."""

import json
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from random import Random

import pytest

from ds_stage2ab.carriers import Truth
from ds_stage2ab.codec.text import CODECS, encode_answer
from ds_stage2ab.engine.build import position_index
from ds_stage2ab.errors import EXIT_OK
from ds_stage2ab.rollout.hf import HfBackend
from tests.bench.decoding import decoded
from tests.bench.qwen_words import write_checkpoint
from tests.parts import ROOT, config_values, merged, write_config
from tests.ranks import train
from tests.real_tokenizers import qwen_vocabulary
from tests.rollout_cases import random_box
from tests.test_keyed import LEARNS
from tests.unit.parts import greedy_sampling, load_bench

NAMES = (
    *("person", "car", "chair", "book", "bottle", "cup", "dining table", "traffic light", "backpack", "umbrella"),
    *("black cat", "potted plant", "man in a red jacket", "cell phone", "wine glass", "left front wheel of the truck"),
)
NUM_SCENES = 200


@pytest.mark.bench
def test_tokens_per_object(capsys):
    """Scenes of 1 to 12 objects, sorted by place, so that equal names stand side by side by chance alone."""
    vocabulary, tokens = qwen_vocabulary(), dict.fromkeys(CODECS, 0)
    scenes = [random_scene(Random(seed)) for seed in range(NUM_SCENES)]
    num_objects = sum(map(len, scenes))
    for form, codec in CODECS.items():
        tokens[form] = sum(len(encode_answer(scene, vocabulary, codec).ids) for scene in scenes)
    with capsys.disabled():
        for form, number in tokens.items():
            ratio = tokens["array"] / number
            print(f"\n{form:8} {number / num_objects:5.1f} tokens per object, array's are {ratio:.2f} x", end="")
    assert tokens["compact"] * 3 < tokens["array"] < tokens["keyed"]
    assert tokens["compact"] < 8 * num_objects


def random_scene(random: Random) -> list[Truth]:
    objects = [Truth(desc=random.choice(NAMES), box=random_box(random)) for _ in range(random.randrange(1, 13))]
    return sorted(objects, key=lambda one: (one.box[1], one.box[0]))


@pytest.mark.bench
def test_a_step_of_the_learner(shipped, tmp_path, capsys):
    """The same scenes in both forms, with Qwen's vocabulary: what teacher forcing takes."""
    write_checkpoint(shipped.model, tmp_path / "model")
    figures = {}
    for form in ("array", "compact"):
        words = ["-m", "tests.bench.form_step", form, str(tmp_path / "model"), str(shipped.data)]
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=True)
        figures[form] = json.loads(done.stdout.splitlines()[-1])
    with capsys.disabled():
        for form, one in figures.items():
            said = f"{one['tokens']} tokens of answers, {one['seconds']:.2f} s, {one['bytes'] >> 20} MiB"
            print(f"\n{form:8} {said}", end="")
    for name in ("tokens", "seconds", "bytes"):
        assert 2 * figures["compact"][name] < figures["array"][name]


@pytest.mark.bench
def test_rollouts(shipped, tmp_path, capsys):
    """The shipped checkpoint, and what it becomes in a minute in the compact form; the same scenes, seconds of CPU."""
    changes = {**LEARNS, "data.codec": "compact", "stage2_ab.schedule.b_ratio": 0, "logging.rollouts": False}
    values = merged(config_values(shipped, tmp_path / "runs", "compact"), changes)
    done = train(write_config(tmp_path / "c.yaml", values), ranks=1)
    assert done.returncode == EXIT_OK, done.stdout[-2000:] + done.stderr[-2000:]
    checkpoints = tmp_path / "runs" / "compact" / "checkpoints"
    models = {"array": shipped.model, "compact": checkpoints / (checkpoints / "latest").read_text().strip() / "hf"}
    found = {}
    for form, model in models.items():
        bench = load_bench(replace(shipped, model=model), num_samples=64)
        for codec in (None, CODECS[form]):
            settings = {"decode_batch_size": 8, "start_id": "bench", "seed": 0, "codec": codec}
            backend = HfBackend(
                lambda model=bench.model: nullcontext(model), bench.vocabulary, position_index(bench.model), **settings
            )
            seconds = []
            for _ in range(5):
                start = time.process_time()
                decoded(backend, bench.samples, greedy_sampling(max_new_tokens=256))
                seconds.append(time.process_time() - start)
            found[form, codec is not None] = (statistics.median(seconds), backend.decoding)
    with capsys.disabled():
        for (form, drafts), (median, done) in found.items():
            said = f"{done.tokens} tokens, {done.live} row passes, {median:.2f} s"
            print(f"\n{form:8} {'drafts' if drafts else 'no drafts':10} {said}", end="")
    assert found["compact", False][0] < 0.6 * found["array", False][0]
    assert found["compact", True][0] < 1.1 * found["array", True][0]

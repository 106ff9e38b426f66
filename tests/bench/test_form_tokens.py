"""How many tokens an object takes in each answer format, with Qwen's vocabulary."""

from random import Random

import pytest

from ds_stage2ab.carriers import Truth
from ds_stage2ab.codec.text import CODECS, encode_answer
from ds_stage2ab.codec.vocabulary import Vocabulary
from tests.real_tokenizers import qwen
from tests.rollout_cases import random_box

NAMES = (
    *("person", "car", "chair", "book", "bottle", "cup", "dining table", "traffic light", "backpack", "umbrella"),
    *("black cat", "potted plant", "man in a red jacket", "cell phone", "wine glass", "left front wheel of the truck"),
)
NUM_SCENES = 200


@pytest.mark.bench
def test_tokens_per_object(capsys):
    """Scenes of 1 to 12 objects, sorted by place, so that equal names stand side by side by chance alone."""
    vocabulary, tokens = Vocabulary.from_tokenizer(qwen()), dict.fromkeys(CODECS, 0)
    scenes = [_scene(Random(seed)) for seed in range(NUM_SCENES)]
    num_objects = sum(map(len, scenes))
    for form, codec in CODECS.items():
        tokens[form] = sum(len(encode_answer(scene, vocabulary, codec).ids) for scene in scenes)
    with capsys.disabled():
        for form, number in tokens.items():
            ratio = tokens["array"] / number
            print(f"\n{form:8} {number / num_objects:5.1f} tokens per object, array's are {ratio:.2f} x", end="")
    assert tokens["compact"] * 3 < tokens["array"] < tokens["keyed"]
    assert tokens["compact"] < 8 * num_objects


def _scene(random: Random) -> list[Truth]:
    objects = [Truth(desc=random.choice(NAMES), box=random_box(random)) for _ in range(random.randrange(1, 13))]
    return sorted(objects, key=lambda one: (one.box[1], one.box[0]))

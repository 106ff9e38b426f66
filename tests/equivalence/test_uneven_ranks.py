"""Two ranks that could hardly differ more give the run of one rank, under ZeRO 3, where every mismatch would hang.

Rank 0 draws nine samples without objects, which share one pack; rank 1 nine samples of one object with a long
description, of which no two fit into a pack, and its rollouts come three seconds late.
"""

import json

from safetensors.torch import load_file

from ds_stage2ab.data.stream import permutation
from tests.equivalence.runs import Runs, assert_same_run

EACH = 9  # samples of each rank
CAP = 900  # tokens
SEED = 42
LONG = " ".join(str(number) for number in range(100, 260))


def write_records(quickstart, path):
    """2 x 9 records whose first epoch draws those of rank 0 first."""
    records = [json.loads(line) for line in (quickstart.data / "train.jsonl").read_text().splitlines()[: 2 * EACH]]
    for place, index in enumerate(permutation(SEED, 0, 2 * EACH)):
        objects = [{"desc": LONG, "bbox_2d": [0, 0, 20, 20]}] if place >= EACH else []
        records[index]["objects"] = objects
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_nine_packs_beside_one_and_a_late_rank(shipped, tmp_path):
    write_records(shipped, tmp_path / "uneven.jsonl")
    run = Runs(shipped, tmp_path, {
        "data.train": str(tmp_path / "uneven.jsonl"),
        "data.image_root": str(shipped.data),
        "training.effective_batch_size": 2 * EACH,
        "training.per_device_train_batch_size": EACH,
        "training.global_max_length": CAP,
        "training.max_steps": 1,
        "training.learning_rate": 0.001,
        "stage2_ab.schedule.b_ratio": 1,
    })  # fmt: skip
    plainest = run("one", 1, {"training.per_device_train_batch_size": 1, "training.packing": False})
    uneven = run("uneven", 2, {"deepspeed.zero_stage": 3}, arrivals="late")
    assert_same_run(uneven, plainest, load_file(shipped.model / "model.safetensors"))
    assert run.rollouts("uneven") == run.rollouts("one")
    (step,) = run.history("uneven").steps
    assert step.metrics["train/packs"] == EACH + 1
    assert step.metrics["time/rollout_s"] > 3

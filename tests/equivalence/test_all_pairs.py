"""Ten steps in every pair of ways to split a run, and AdamW: the same rollouts, losses and weights.

The whole product has thousands of runs; what breaks equality is nearly always one value or two that meet, so the rows
below hold every pair of values of two factors at least once.
"""

from itertools import combinations, product

import pytest
from safetensors.torch import load_file

from tests.equivalence.runs import Runs, assert_same_run

MATCHING = "custom.extra.rollout_matching"
KIND_FACTORS = {
    "stage2_ab.schedule.b_ratio": (0, 0.5, 1),
    "stage2_ab.channel_b.target": ("rewrite", "append"),
    "deepspeed.gradient_clipping": (0.0, 0.5),
    "stage2_ab.n_softctx_iter": (1, 2),
}
"""Another value is another run, with a plainest one of its own."""
SPLIT_FACTORS = {
    "ranks": (1, 2),
    "deepspeed.zero_stage": (0, 1, 2, 3),
    "training.global_max_length": (200, 1024),
    "training.per_device_train_batch_size": (1, 2, 4),
    f"{MATCHING}.decode_batch_size": (1, 3, 8),
    "arrivals": ("", "scrambled"),
    "data.workers": (0, 1),
}
FACTORS = {**KIND_FACTORS, **SPLIT_FACTORS}
PLAINEST = {
    "training.max_steps": 10,
    "training.per_device_train_batch_size": 1,
    "training.packing": False,
    "training.learning_rate": 0.002,
    "deepspeed.zero_stage": 0,
}
ADAMW = {"training.optimizer": "adamw", "training.learning_rate": 1e-4}
ADAMW_LOSS_TOLERANCE = 1e-4  # relative: Adam makes large moves of small gradients, rounding included


def rows_with_every_pair():
    """Greedily, the row of the product that holds most pairs not seen yet; the first on a tie."""
    names = list(FACTORS)
    left = {((a, x), (b, y)) for a, b in combinations(names, 2) for x in FACTORS[a] for y in FACTORS[b]}
    rows = [dict(zip(names, values, strict=True)) for values in product(*FACTORS.values())]
    candidates, chosen = [(row, pairs_of(row)) for row in rows], []
    while left:
        best, pairs = max(candidates, key=lambda candidate: len(left & candidate[1]))
        left -= pairs
        chosen.append(best)
    return chosen


def pairs_of(row):
    return set(combinations(row.items(), 2))


def name_of(row):
    return "-".join(str(value or "now") for value in row.values())


@pytest.fixture(scope="module")
def run(shipped, tmp_path_factory):
    return Runs(shipped, tmp_path_factory.mktemp("pairs"), PLAINEST)


@pytest.fixture(scope="module")
def start(shipped):
    return load_file(shipped.model / "model.safetensors")


def changes_of(row):
    return {key: value for key, value in row.items() if "." in key} | {"training.packing": True}


@pytest.mark.soak
@pytest.mark.parametrize("row", rows_with_every_pair(), ids=name_of)
def test_ten_steps_of_every_pair(run, start, row):
    kind = {key: row[key] for key in KIND_FACTORS}
    plainest = run(name_of(kind), 1, kind)
    seen = run(name_of(row), row["ranks"], changes_of(row), arrivals=row["arrivals"])
    assert run.rollouts(name_of(row)) == run.rollouts(name_of(kind))
    assert_same_run(seen, plainest, start)


@pytest.mark.soak
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_ten_steps_of_adamw(run, stage):
    mixed = {**ADAMW, "stage2_ab.schedule.b_ratio": 0.5}
    plainest, _ = run("adamw", 1, mixed)
    split = {"training.packing": True, "training.per_device_train_batch_size": 2, "deepspeed.zero_stage": stage}
    losses, _ = run(f"adamw-{stage}", 2, {**mixed, **split})
    assert losses == pytest.approx(plainest, rel=ADAMW_LOSS_TOLERANCE)

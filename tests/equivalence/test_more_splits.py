"""Ten steps of what `test_same_run.py` and `test_all_pairs.py` leave out: more ranks, offload, bf16, frozen parts."""

import pytest
import torch
from safetensors.torch import load_file

from ds_stage2ab.engine.tuner import part_of
from tests.equivalence.runs import Runs, assert_same_run

STAGE, OFFLOAD = "deepspeed.zero_stage", "deepspeed.offload_optimizer"
PER_DEVICE, B_RATIO = "training.per_device_train_batch_size", "stage2_ab.schedule.b_ratio"
OPTIMIZER = "training.optimizer"
ADAMW = {OPTIMIZER: "adamw", "training.weight_decay": 0.1, "training.learning_rate": 1e-4}
PLAINEST = {
    "training.effective_batch_size": 12,
    "training.max_steps": 10,
    "training.packing": False,
    "training.learning_rate": 0.002,
    B_RATIO: 0.5,
    PER_DEVICE: 1,
    STAGE: 0,
}
PACKED = {"training.packing": True, "training.global_max_length": 145}
SPLITS = {
    # ranks, arrivals, changes; a weight whose size no three divide is padded by ZeRO
    "three-zero-0": (3, "", {PER_DEVICE: 4, STAGE: 0}),
    "three-zero-2": (3, "scrambled", {PER_DEVICE: 2, STAGE: 2}),
    "three-zero-3": (3, "", {PER_DEVICE: 1, STAGE: 3}),
    "four-zero-1-offloaded": (4, "late", {PER_DEVICE: 3, STAGE: 1, OFFLOAD: "cpu"}),
    "two-zero-2-offloaded": (2, "", {PER_DEVICE: 3, STAGE: 2, OFFLOAD: "cpu"}),
}
BF16 = {"model.precision": "bf16", **PACKED, PER_DEVICE: 3}
BF16_LOSS_TOLERANCE = 1e-5  # relative
BF16_LEAST_COSINE = 0.9999  # of the moves of all weights together


@pytest.fixture(scope="module")
def run(shipped, tmp_path_factory):
    return Runs(shipped, tmp_path_factory.mktemp("splits"), PLAINEST)


@pytest.fixture(scope="module")
def start(shipped):
    return load_file(shipped.model / "model.safetensors")


@pytest.mark.soak
@pytest.mark.parametrize("name", SPLITS)
def test_more_ranks_and_offload_are_the_same_run(run, start, name):
    ranks, arrivals, changes = SPLITS[name]
    assert_same_run(run(name, ranks, {**PACKED, **changes}, arrivals=arrivals), run("plainest", 1, {}), start)
    assert run.rollouts(name) == run.rollouts("plainest")
    packs = [step.metrics["train/packs"] for step in run.history(name).steps]
    assert any(number % ranks for number in packs), "in some step a rank was without a pack of its own"


@pytest.mark.soak
@pytest.mark.parametrize("zero_stage", [1, 2])
def test_an_offloaded_adamw_is_the_same_run(run, zero_stage):
    """Its arithmetic is that of the optimizer that is not offloaded, so the bound is that of rounding."""
    same = {**ADAMW, **PACKED, PER_DEVICE: 3, STAGE: zero_stage}
    kept, offloaded = run(f"adamw-{zero_stage}", 2, same), run(f"off-{zero_stage}", 2, {**same, OFFLOAD: "cpu"})
    assert offloaded[0] == pytest.approx(kept[0], rel=1e-6)
    assert run.rollouts(f"off-{zero_stage}") == run.rollouts(f"adamw-{zero_stage}")


@pytest.mark.soak
@pytest.mark.parametrize(("zero_stage", "offload"), [(2, "none"), (3, "none"), (3, "cpu")])
@pytest.mark.parametrize("optimizer", [{}, ADAMW], ids=["sgd", "adamw"])
def test_bf16_is_the_same_run_under_every_stage(run, quickstart, zero_stage, offload, optimizer):
    """Against stage 0, which runs as 1 and sums a rank's packs before the ranks'; every sum is one of fp32.

    On Channel A alone and from fresh weights, as `test_bf16_follows_fp32` of test_same_run.py says why.
    """
    teacher_forcing = {**BF16, **optimizer, B_RATIO: 0, "model.path": str(quickstart.model)}
    kind = f"bf16-{optimizer.get(OPTIMIZER, 'sgd')}"
    losses, weights = run(kind, 2, {**teacher_forcing, STAGE: 0})
    name = f"{kind}-{zero_stage}-{offload}"
    seen, ends = run(name, 2, {**teacher_forcing, STAGE: zero_stage, OFFLOAD: offload})
    start = load_file(quickstart.model / "model.safetensors")
    assert seen == pytest.approx(losses, rel=BF16_LOSS_TOLERANCE)
    moves = [[(end[key].double() - start[key].double()).flatten() for key in start] for end in (ends, weights)]
    assert torch.cosine_similarity(*map(torch.cat, moves), dim=0) > BF16_LEAST_COSINE
    assert {tensor.dtype for tensor in ends.values()} == {torch.bfloat16}


@pytest.mark.soak
@pytest.mark.parametrize(
    ("frozen", "zero_stage"),
    [
        (["vision"], 3),
        (["aligner"], 3),
        (["language"], 3),
        (["vision", "language"], 3),
        (["vision", "aligner"], 0),
        (["vision", "aligner"], 1),
        (["vision", "aligner"], 2),
    ],
    ids=str,
)
def test_frozen_parts_stay_bit_by_bit_and_no_other(run, start, frozen, zero_stage):
    """With weight decay, which would move a weight that has no gradient; on both channels."""
    changes = {**ADAMW, **PACKED, "model.freeze": frozen, "training.max_steps": 4, PER_DEVICE: 3}
    _, weights = run("-".join(["frozen", *frozen, str(zero_stage)]), 2, {**changes, STAGE: zero_stage})
    still = {name for name, tensor in weights.items() if torch.equal(tensor, start[name])}
    assert still == {name for name in weights if part_of(name) in frozen}

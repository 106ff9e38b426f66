"""One config, any split: runs of the real launcher give the same rollouts, the same losses and the same weights.

All runs start from the shipped checkpoint, whose answers are worth matching, and train A and B in turn.
"""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from ds_stage2ab.data.stream import SampleOrder
from ds_stage2ab.metrics.journal import read_history
from ds_stage2ab.packs.collate import collate
from tests.parts import config_values, launch, merged, write_config
from tests.unit.parts import load_bench

LOSS_TOLERANCE = 1e-5  # relative
BF16_LOSS_TOLERANCE = 3e-2  # relative: bf16 keeps 8 bits of a weight
MOVE_TOLERANCE = 1e-3  # of how far a tensor moved
ROUNDING = 3e-7  # of a tensor's norm: a few fp32 roundings of each weight

MATCHING = "custom.extra.rollout_matching"
VARIANTS = {
    "two-ranks": (2, {"training.per_device_train_batch_size": 2}),
    "packing-off": (1, {"training.packing": False}),
    "decode-one-at-a-time": (1, {f"{MATCHING}.decode_batch_size": 1}),
    "two-ranks-decode-one-at-a-time": (2, {f"{MATCHING}.decode_batch_size": 1, "deepspeed.zero_stage": 1}),
    "half-the-micro-batch": (1, {"training.per_device_train_batch_size": 2}),
    "zero-1-two-ranks": (2, {"deepspeed.zero_stage": 1}),
    "zero-2-two-ranks-packing-off": (2, {"deepspeed.zero_stage": 2, "training.packing": False}),
    "two-ranks-with-unequal-packs": (2, {"training.global_max_length": 170, "deepspeed.zero_stage": 2}),
    "checkpointing": (1, {"model.gradient_checkpointing": True}),
}
MATRIX = [
    (ranks, stage, packing, per_device, decode)
    for ranks in (1, 2)
    for stage in (0, 1, 2)
    for packing in (True, False)
    for per_device, decode in ((2, 1), (4, 4))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("equivalence")


@pytest.fixture(scope="module")
def run(shipped, folder):
    """Launch a variant of the small run, A and B in turn; returns (losses by step, exported weights)."""

    def launched(name, ranks, changes, environment=None):
        both = {"stage2_ab.schedule.b_ratio": 0.5, "logging.rollouts": True, **changes}
        values = merged(config_values(shipped, folder / "runs", name), both)
        done = launch(write_config(folder / f"{name}.yaml", values), ranks=ranks, environment=environment)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        history = read_history(folder / "runs" / name / "metrics.jsonl")
        checkpoints = folder / "runs" / name / "checkpoints"
        exported = checkpoints / (checkpoints / "latest").read_text().strip() / "hf" / "model.safetensors"
        return [step.metrics["loss/total"] for step in history.steps], load_file(exported)

    return launched


@pytest.fixture(scope="module")
def plainest(run):
    """One rank, ZeRO 0, four samples per micro-step, two micro-steps."""
    return run("plainest", 1, {})


@pytest.fixture(scope="module")
def start(shipped):
    """The weights that every run begins with."""
    return load_file(shipped.model / "model.safetensors")


def rollouts(folder, name):
    """(draw, sample, response ids, finish) of every rollout of a run, all ranks together, in the order of the draws."""
    files = sorted((folder / "runs" / name / "rollouts").glob("rank-*.jsonl"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return sorted((one["draw"], one["sample_id"], tuple(one["response_ids"]), one["finish"]) for one in lines)


def assert_same_weights(seen, expected, start):
    """Equal up to rounding, measured by how far training moved each tensor: unmoved weights would agree in anything."""
    assert seen.keys() == expected.keys()
    for name, tensor in expected.items():
        wanted, begun = tensor.double(), start[name].double()
        gap, moved = (torch.linalg.vector_norm(x) for x in (seen[name].double() - wanted, wanted - begun))
        assert gap <= MOVE_TOLERANCE * moved + ROUNDING * torch.linalg.vector_norm(wanted), f"{name}: {gap}, {moved}"


@pytest.mark.parametrize("name", VARIANTS)
def test_same_rollouts_losses_and_weights(run, plainest, start, folder, name):
    losses, weights = run(name, *VARIANTS[name])
    assert len(losses) == 6
    assert rollouts(folder, name) == rollouts(folder, "plainest")
    assert losses == pytest.approx(plainest[0], rel=LOSS_TOLERANCE)
    assert_same_weights(weights, plainest[1], start)


def test_the_reference_of_the_packing_operators_gives_the_same_steps(run, plainest, folder):
    losses, _ = run("no-extension", 1, {"training.max_steps": 2}, {"DS_STAGE2AB_NO_EXT": "1"})
    assert losses == plainest[0][:2]
    assert rollouts(folder, "no-extension") == rollouts(folder, "plainest")[:8]


def test_channel_b_runs_in_bf16(run, folder):
    changes = {"stage2_ab.schedule.b_ratio": 1, "training.max_steps": 2, "model.precision": "bf16"}
    losses, _ = run("bf16-channel-b", 2, {**changes, "training.learning_rate": 1e-3})
    assert all(math.isfinite(loss) for loss in losses)
    steps = read_history(folder / "runs" / "bf16-channel-b" / "metrics.jsonl").steps
    assert [step.metrics["rollout/count"] for step in steps] == [8, 8]
    assert all(step.metrics["match/f1"] > 0.3 for step in steps)


def test_b_steps_draw_the_effective_batch_of_rollouts(plainest, folder):
    """b_ratio 0.5: the steps 2, 4 and 6 are B, each with the draws g of its own R = 8 samples."""
    history = read_history(folder / "runs" / "plainest" / "metrics.jsonl")
    assert [step.channel for step in history.steps] == ["A", "B", "A", "B", "A", "B"]
    assert [step.metrics.get("rollout/count") for step in history.steps] == [None, 8, None, 8, None, 8]
    drawn = rollouts(folder, "plainest")
    assert [draw for draw, *_ in drawn] == [*range(8, 16), *range(24, 32), *range(40, 48)]
    assert len({response for _, _, response, _ in drawn}) > 12, "answers differ from image to image"


@pytest.mark.soak
@pytest.mark.parametrize(("ranks", "stage", "packing", "per_device", "decode"), MATRIX)
def test_the_same_run_in_every_combination(run, plainest, start, folder, ranks, stage, packing, per_device, decode):
    changes = {
        "deepspeed.zero_stage": stage,
        "training.packing": packing,
        "training.per_device_train_batch_size": per_device,
        f"{MATCHING}.decode_batch_size": decode,
    }
    name = f"{ranks}-{stage}-{packing}-{per_device}-{decode}"
    losses, weights = run(name, ranks, changes)
    assert rollouts(folder, name) == rollouts(folder, "plainest")
    assert losses == pytest.approx(plainest[0], rel=LOSS_TOLERANCE)
    assert_same_weights(weights, plainest[1], start)


def test_bf16_follows_fp32(run, quickstart):
    """The schema's default precision, on two ranks; stage 0 runs as stage 1 there.

    On Channel A alone, since a rollout in bf16 is another text and the step that learns from it another step; and from
    fresh weights, whose first moves are large beside the rounding of the exported ones.
    """
    start = load_file(quickstart.model / "model.safetensors")
    teacher_forcing = {"stage2_ab.schedule.b_ratio": 0, "model.path": str(quickstart.model)}
    plainest = run("fp32-channel-a", 1, teacher_forcing)
    losses, weights = run("bf16-channel-a", 2, {**teacher_forcing, "model.precision": "bf16"})
    assert losses == pytest.approx(plainest[0], rel=BF16_LOSS_TOLERANCE)
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    name = "model.language_model.embed_tokens.weight"
    moves = [(end[name].double() - start[name].double()).flatten() for end in (weights, plainest[1])]
    assert torch.cosine_similarity(*moves, dim=0) > 0.9


def test_the_runs_move_every_weight(plainest, start):
    """Runs that never move would agree in everything."""
    for name, tensor in plainest[1].items():
        moved = torch.linalg.vector_norm(tensor.double() - start[name].double())
        assert moved > 10 * ROUNDING * torch.linalg.vector_norm(start[name].double()), name


def test_ranks_with_unequal_packs_were_among_them(run, folder):
    """An odd number of packs on two ranks: one of them ran the pack of weight zero."""
    name = "two-ranks-with-unequal-packs"
    if not (folder / "runs" / name).exists():
        run(name, *VARIANTS[name])
    steps = read_history(folder / "runs" / name / "metrics.jsonl").steps
    assert any(step.metrics["train/packs"] % 2 for step in steps)


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_one_and_four_micro_steps_give_the_same_weights(run, start, zero_stage):
    """One SGD step on the same 8 samples: DeepSpeed must not divide by the accumulation steps once more."""
    weights = []
    for micro_batch in (8, 2):
        changes = {
            "training.max_steps": 1,
            "training.per_device_train_batch_size": micro_batch,
            "deepspeed.zero_stage": zero_stage,
        }
        weights.append(run(f"zero-{zero_stage}-micro-batch-{micro_batch}", 1, changes)[1])
    assert_same_weights(*weights, start)
    one, four = (torch.cat([end[name].double().flatten() for name in sorted(start)]) for end in weights)
    assert torch.linalg.vector_norm(one - four) <= 1e-6 * torch.linalg.vector_norm(one)


def test_one_step_moved_the_weights_by_the_gradient_of_the_mean(run, start, shipped):
    """SGD alone: the step is learning rate times the gradient of the mean sample loss, in plain torch."""
    _, stepped = run("one-step", 1, {"training.max_steps": 1, "training.per_device_train_batch_size": 2})
    bench = load_bench(shipped, num_samples=64)
    order = SampleOrder(42, 64, 64)
    drawn = replace(bench, samples=[bench.samples[order.record_of(g)] for g in range(8)])
    objective = drawn.objective(coord_el1_weight=0.0, coord_ehuber_weight=0.0, coord_entropy_weight=0.0)
    loss = sum(objective(collate([segment], num_passes=1))[0] for segment in drawn.segments()) / 8
    loss.backward()
    expected = {name: parameter.detach() - 0.01 * parameter.grad for name, parameter in bench.model.named_parameters()}
    stepped.pop("lm_head.weight", None)
    assert_same_weights(stepped, {name: tensor for name, tensor in expected.items() if name in stepped}, start)
    assert len(stepped) == len(expected)

"""One config, any split: runs give the same rollouts, the same losses and the same weights.

All runs start from the shipped checkpoint, whose answers are worth matching; fp32 and SGD unless they say otherwise.
One of them is started by DeepSpeed's launcher, the others as the ranks that it would start.
"""

import math
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from ds_stage2ab.data.stream import SampleOrder
from ds_stage2ab.engine.tuner import part_of
from ds_stage2ab.packs.collate import collate
from tests import parts
from tests.equivalence.runs import ROUNDING, Runs, assert_same_run, assert_same_weights
from tests.ranks import launch_script
from tests.ranks import run as run_ranks
from tests.unit.parts import load_bench

BF16_LOSS_TOLERANCE = 1e-3  # relative, where a weight of bf16 keeps 4e-3

MATCHING = "custom.extra.rollout_matching"
DECODE, PER_DEVICE, CAP = f"{MATCHING}.decode_batch_size", "training.per_device_train_batch_size", (
    "training.global_max_length"
)
B_RATIO, STAGE = "stage2_ab.schedule.b_ratio", "deepspeed.zero_stage"
TARGET = "stage2_ab.channel_b.target"
NARROW = 200  # tokens: two samples fit, hardly three
LAUNCHED = "two-ranks-zero-1"
PLAINEST = {
    PER_DEVICE: 1, STAGE: 0, "training.packing": False, B_RATIO: 0.5, "training.max_steps": 3, DECODE: 3,
}  # fmt: skip
KINDS = {
    "mixed": {},
    "a-clipped-two-passes": {B_RATIO: 0, "stage2_ab.n_softctx_iter": 2, "deepspeed.gradient_clipping": 0.5},
    "b-vision-frozen": {B_RATIO: 1, TARGET: "append", "model.freeze": ["vision"]},
}
"""What makes it another run; in each all splits must give the same."""
VARIANTS = {
    # kind, ranks, arrivals of rollouts, changes; R = 8, so accumulation is 8 / (per device x ranks)
    "two-ranks-zero-1": ("mixed", 2, "", {"training.packing": True, PER_DEVICE: 2, STAGE: 1, DECODE: 8}),
    "arrivals-two-ranks-zero-2-offloaded": (
        "mixed", 2, "scrambled", {"training.packing": True, CAP: 250, STAGE: 2, "deepspeed.offload_optimizer": "cpu"}
    ),
    "a-two-ranks-zero-3-offloaded-checkpointing": (
        "a-clipped-two-passes", 2, "", {"training.packing": True, PER_DEVICE: 4, STAGE: 3,
        "deepspeed.offload_optimizer": "cpu", "data.workers": 1, "model.gradient_checkpointing": True},
    ),
    "b-two-ranks-one-late": (
        "b-vision-frozen", 2, "late", {"training.packing": True, CAP: NARROW, PER_DEVICE: 4, STAGE: 3, DECODE: 8}
    ),
}  # fmt: skip
"""With four ranks below: every value once."""
MORE_VARIANTS = {
    "packs-of-many": ("mixed", 1, "", {"training.packing": True, PER_DEVICE: 8, DECODE: 1}),
    "two-ranks-zero-2-unequal-packs": ("mixed", 2, "", {"training.packing": True, CAP: 145, PER_DEVICE: 2, STAGE: 2}),
    "two-ranks-zero-3": ("mixed", 2, "", {"training.packing": True, PER_DEVICE: 4, STAGE: 3, DECODE: 1}),
    "a-zero-2-checkpointing": (
        "a-clipped-two-passes", 2, "",
        {"training.packing": True, PER_DEVICE: 1, STAGE: 2, "model.gradient_checkpointing": True},
    ),
    "b-two-ranks-zero-0": ("b-vision-frozen", 2, "", {CAP: NARROW, "training.packing": True, PER_DEVICE: 1, DECODE: 8}),
}  # fmt: skip
ALL_VARIANTS = [*VARIANTS, *(pytest.param(name, marks=pytest.mark.soak) for name in MORE_VARIANTS)]


@pytest.fixture(scope="module")
def run(shipped, tmp_path_factory):
    """Launch a run once for each name."""
    return Runs(shipped, tmp_path_factory.mktemp("equivalence"), PLAINEST)


@pytest.fixture(scope="module")
def plainest(run):
    """Kind -> its run on one rank, ZeRO 0, no packing, one sample per micro-step."""
    return lambda kind, **changes: run("-".join([kind, *changes]), 1, {**KINDS[kind], **changes})


@pytest.fixture(scope="module")
def start(shipped):
    """The weights that every run begins with."""
    return load_file(shipped.model / "model.safetensors")


def variant(run, name):
    kind, ranks, arrivals, changes = {**VARIANTS, **MORE_VARIANTS}[name]
    start = launch_script if name == LAUNCHED else run_ranks
    return run(name, ranks, {**KINDS[kind], **changes}, arrivals=arrivals, start=start)


@pytest.mark.parametrize("name", ALL_VARIANTS)
def test_same_rollouts_losses_and_weights(run, plainest, start, name):
    kind = {**VARIANTS, **MORE_VARIANTS}[name][0]
    assert_same_run(variant(run, name), plainest(kind), start)
    assert run.rollouts(name) == run.rollouts(kind)
    assert len(run.rollouts(name)) == {"mixed": 8, "a-clipped-two-passes": 0, "b-vision-frozen": 24}[kind]


FOUR = {STAGE: 3, "training.packing": True, CAP: 145, PER_DEVICE: 1, DECODE: 1}


@pytest.fixture(scope="module")
def four_ranks(run, tmp_path_factory):
    """(losses, weights) of four ranks that share out every weight, and the diary of each rank, line by line."""
    folder = tmp_path_factory.mktemp("diary")
    done = run("four-ranks", 4, FOUR, script="tests/equivalence/watched.py", environment={"DIARY": str(folder)})
    return done, [(folder / f"rank-{rank}.txt").read_text().splitlines() for rank in range(4)]


def test_four_ranks_do_the_same(run, plainest, start, four_ranks):
    assert_same_run(four_ranks[0], plainest("mixed"), start)
    assert run.rollouts("four-ranks") == run.rollouts("mixed")


def test_the_ranks_meet_once_for_a_round_of_packs(run, start, four_ranks):
    """And once at its end, of which both a step on A and on B is otherwise: the letters are those of `watched.py`.

    Two micro-steps; the samples were read; the rounds; no rank has another pack; the sums; the update. In a step on B
    the weights are gathered once before a rank's rollouts, and the slowest rank's seconds are told.
    """
    _, diaries = four_ranks
    num_gathered = len(start) - ("lm_head.weight" in start)
    on_b = rf"ur w{{{num_gathered}}} d rb (rb)* r rur".replace(" ", "")
    for diary in diaries:
        for line, expected in zip(diary, ["ur(rb)+rru", on_b, "ur(rb)+rru"], strict=True):
            assert re.fullmatch(expected, line), line
    rounds = [[line.count("b") for line in diary] for diary in diaries]
    assert rounds == rounds[:1] * 4
    packs = [step.metrics["train/packs"] for step in run.history("four-ranks").steps]
    assert any(number % 4 for number in packs), "some rank was without a pack of its own"
    assert all(number <= 4 * most for number, most in zip(packs, rounds[0], strict=True))


def test_the_variants_cover_every_value():
    """Of everything that a run can be split by, and of what makes it another run."""
    seen = [{**PLAINEST, **KINDS[kind], **changes, "ranks": ranks} for kind, ranks, _, changes in VARIANTS.values()]
    seen += [{**PLAINEST, "ranks": 1}, {**PLAINEST, **FOUR, "ranks": 4}]
    assert {one["ranks"] for one in seen} == {1, 2, 4}
    assert {one[STAGE] for one in seen} == {0, 1, 2, 3}
    assert {8 // (one[PER_DEVICE] * one["ranks"]) for one in seen} == {1, 2, 4, 8}
    assert {one[DECODE] for one in seen} == {1, 3, 8}
    assert {one[B_RATIO] for one in seen} == {0, 0.5, 1}
    assert {one.get(TARGET) for one in seen if one[B_RATIO] > 0} == {None, "append"}  # None: the default, rewrite
    assert {one.get(CAP) for one in seen} == {None, NARROW, 145, 250}
    assert {arrivals for _, _, arrivals, _ in VARIANTS.values()} == {"", "scrambled", "late"}


@pytest.mark.soak
def test_the_reference_of_the_operators_gives_the_same_steps(run, plainest):
    changes = {"training.max_steps": 2}
    losses, _ = run("no-extension", 1, changes, environment={"DS_STAGE2AB_NO_EXT": "1"}, start=parts.launch_script)
    assert losses == plainest("mixed")[0][:2]
    assert run.rollouts("no-extension") == run.rollouts("mixed")


def test_channel_b_runs_in_bf16(run):
    changes = {B_RATIO: 1, "training.max_steps": 2, "model.precision": "bf16", PER_DEVICE: 4, "training.packing": True}
    losses, _ = run("bf16-channel-b", 2, {**changes, "training.learning_rate": 1e-3})
    assert all(math.isfinite(loss) for loss in losses)
    steps = run.history("bf16-channel-b").steps
    assert [step.metrics["rollout/count"] for step in steps] == [8, 8]
    assert all(step.metrics["match/f1"] > 0.3 for step in steps)


def test_b_steps_draw_the_effective_batch_of_rollouts(run, plainest):
    """b_ratio 0.5: step 2 is B, with the draws g of its own R = 8 samples."""
    plainest("mixed")
    history = run.history("mixed")
    assert [step.channel for step in history.steps] == ["A", "B", "A"]
    assert [step.metrics.get("rollout/count") for step in history.steps] == [None, 8, None]
    drawn = run.rollouts("mixed")
    assert [draw for draw, *_ in drawn] == [*range(8, 16)]
    assert len({response for _, _, response, _ in drawn}) > 5, "answers differ from image to image"


def test_a_late_rank_was_waited_for(run):
    variant(run, "b-two-ranks-one-late")
    steps = run.history("b-two-ranks-one-late").steps
    assert all(step.metrics["time/rollout_s"] > 3 for step in steps)


@pytest.mark.parametrize(
    "name", [pytest.param("b-two-ranks-zero-0", marks=pytest.mark.soak), "b-two-ranks-one-late"]
)
def test_what_is_frozen_stays_bit_by_bit(run, start, name):
    """Under ZeRO 0 and 3, from the exported weights; everything else moves."""
    _, weights = variant(run, name)
    still = {name for name, tensor in weights.items() if torch.equal(tensor, start[name])}
    assert still == {name for name in start if part_of(name) == "vision"}
    assert 0 < len(still) < len(start)


def test_bf16_follows_fp32(run, quickstart):
    """The schema's default precision, on two ranks; stage 0 runs as stage 1 there.

    On Channel A alone, since a rollout in bf16 is another text and the step that learns from it another step; and from
    fresh weights, whose first moves are large beside the rounding of the exported ones.
    """
    start = load_file(quickstart.model / "model.safetensors")
    teacher_forcing = {
        B_RATIO: 0, "model.path": str(quickstart.model), "training.packing": True, PER_DEVICE: 4,
        "training.max_steps": 6,
    }  # fmt: skip
    plainest = run("fp32-channel-a", 1, teacher_forcing)
    losses, weights = run("bf16-channel-a", 2, {**teacher_forcing, "model.precision": "bf16"})
    assert losses == pytest.approx(plainest[0], rel=BF16_LOSS_TOLERANCE)
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    name = "model.language_model.embed_tokens.weight"
    moves = [(end[name].double() - start[name].double()).flatten() for end in (weights, plainest[1])]
    assert torch.cosine_similarity(*moves, dim=0) > 0.9


def test_clipping_had_something_to_clip(run, plainest):
    plainest("a-clipped-two-passes")
    norms = [step.metrics["train/grad_norm"] for step in run.history("a-clipped-two-passes").steps]
    assert min(norms) > KINDS["a-clipped-two-passes"]["deepspeed.gradient_clipping"]


def test_the_runs_move_every_weight(plainest, start):
    """Runs that never move would agree in everything."""
    for name, tensor in plainest("mixed")[1].items():
        moved = torch.linalg.vector_norm(tensor.double() - start[name].double())
        assert moved > 10 * ROUNDING * torch.linalg.vector_norm(start[name].double()), name


@pytest.mark.soak
def test_ranks_with_unequal_packs_were_among_them(run):
    """An odd number of packs on two ranks: one of them ran a dummy pack."""
    name = "two-ranks-zero-2-unequal-packs"
    variant(run, name)
    steps = run.history(name).steps
    assert any(step.metrics["train/packs"] % 2 for step in steps)


@pytest.mark.parametrize("zero_stage", [0, *(pytest.param(stage, marks=pytest.mark.soak) for stage in (1, 2, 3))])
def test_one_and_four_micro_steps_give_the_same_weights(run, start, zero_stage):
    """One SGD step on the same 8 samples: DeepSpeed must not divide by the accumulation steps once more."""
    weights = []
    for micro_batch in (8, 2):
        changes = {
            "training.max_steps": 1,
            "training.packing": True,
            PER_DEVICE: micro_batch,
            STAGE: zero_stage,
        }
        weights.append(run(f"zero-{zero_stage}-micro-batch-{micro_batch}", 1, changes)[1])
    assert_same_weights(*weights, start)
    one, four = (torch.cat([end[name].double().flatten() for name in sorted(start)]) for end in weights)
    assert torch.linalg.vector_norm(one - four) <= 1e-6 * torch.linalg.vector_norm(one)


def test_one_step_moved_the_weights_by_the_gradient_of_the_mean(run, start, shipped):
    """SGD alone: the step is learning rate times the gradient of the mean sample loss, in plain torch."""
    _, stepped = run("zero-0-micro-batch-2", 1, {"training.max_steps": 1, "training.packing": True, PER_DEVICE: 2})
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

"""Channel B with `target: rewrite`: the answer that should have been given, read with the model's own coordinates."""

from dataclasses import replace

import pytest
import torch

from ds_stage2ab.packs.collate import collate
from tests.unit.channels.test_rollout_matching import CAT, DOG, GHOST, answered, runs, segment_of, target_ids
from tests.unit.parts import PLAIN_LOSS, load_bench


@pytest.fixture(scope="module")
def bench(quickstart):
    loaded = load_bench(quickstart, num_samples=1)
    return replace(loaded, samples=[replace(sample, objects=(CAT, DOG)) for sample in loaded.samples])


def rewritten(bench, ids, *, rewrite_order=None, **changes):
    targets = replace(PLAIN_LOSS.channel_b, target="rewrite", rewrite_order=rewrite_order)
    return segment_of(bench, ids, targets=targets, **changes)


@pytest.mark.parametrize(("order", "objects"), [(None, (CAT, DOG)), ("data", (CAT, DOG)), ("generated", (DOG, CAT))])
def test_a_rewritten_answer_has_the_true_names_and_no_ghost(bench, order, objects):
    puppy = replace(DOG, desc="puppy", box=(*DOG.box[:3], 701))
    segment = rewritten(bench, answered(bench, puppy, GHOST, puppy), rewrite_order=order, desc_ce_weight=0.25)
    read = [replace(DOG, box=puppy.box) if one == DOG else one for one in objects]
    assert target_ids(bench, segment)[:-1] == answered(bench, *read)
    assert segment.bins.tolist() == [k for one in objects for k in one.box]
    assert bench.vocabulary.written_all(segment.input_ids[segment.is_desc].tolist()).decode() == "".join(
        one.desc for one in objects
    )
    assert {weight for _, weight in runs(bench, segment)} == {0.0, 0.25, 1.0}
    targets = {name: total for name, (total, _) in segment.terms.items() if name.startswith("target/")}
    assert targets == {
        "target/matched": 1, "target/missed": 1, "target/spurious": 1, "target/duplicate": 1, "target/renamed": 1,
        "target/go_on": 2, "target/stop": 1, "target/seam_fallback": 0,
    }  # fmt: skip


def test_a_perfect_answer_rewritten_is_teacher_forcing(bench):
    """The same segment, so the same loss and the same gradient in every parameter."""
    ids = answered(bench, CAT, DOG)
    segment, taught = rewritten(bench, ids), bench.segments()[0]
    objective = bench.objective()
    losses, gradients = [], []
    for one in (segment, taught):
        loss, _ = objective(collate([one], num_passes=1))
        loss.backward()
        losses.append(loss.item())
        gradients.append([parameter.grad for parameter in objective.parameters()])
        objective.zero_grad()
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert all(torch.allclose(one, other, rtol=1e-6, atol=1e-9) for one, other in zip(*gradients, strict=True))
    assert any(gradient.abs().max() > 0 for gradient in gradients[0])

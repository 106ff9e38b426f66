"""Channel A's loop on text with images: a pack of several samples is each sample by itself, for every number of passes.

And what a middle pass needs: under `em_detach` no gradient, under `unroll` all of it.
"""

import pytest
import torch

from ds_stage2ab.losses.attention import NO_MASK
from ds_stage2ab.packs.collate import collate
from tests.unit.parts import load_bench

PASSES = (1, 2, 3, 4)
MODES = ("unroll", "em_detach")


@pytest.fixture(scope="module")
def bench(quickstart):
    return load_bench(quickstart, num_samples=3)


def gradients(bench, objective, packs):
    """(loss, name -> gradient), summed over the packs."""
    bench.model.zero_grad()
    losses = []
    for pack in packs:
        loss, _ = objective(pack)
        loss.backward()
        losses.append(loss.item())
    return sum(losses), {name: p.grad.clone() for name, p in bench.model.named_parameters()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_passes", PASSES)
def test_a_pack_is_its_samples_alone(bench, num_passes, mode):
    objective, segments = bench.objective(softctx_grad_mode=mode), bench.segments()
    packed, together = gradients(bench, objective, [collate(segments, num_passes=num_passes)])
    alone = [collate([segment], num_passes=num_passes) for segment in segments]
    apart, separate = gradients(bench, objective, alone)
    assert packed == pytest.approx(apart, rel=1e-6)
    norm = torch.stack([grad.norm() for grad in separate.values()]).norm()
    gap = torch.stack([(together[name] - grad).norm() for name, grad in separate.items()]).norm()
    assert gap < 1e-4 * norm


@pytest.mark.parametrize("num_passes", PASSES)
def test_the_modes_differ_in_gradients_alone(bench, num_passes):
    pack = collate(bench.segments(), num_passes=num_passes)
    unrolled, first = gradients(bench, bench.objective(softctx_grad_mode="unroll"), [pack])
    detached, second = gradients(bench, bench.objective(softctx_grad_mode="em_detach"), [pack])
    assert unrolled == pytest.approx(detached, rel=1e-6)
    norm = torch.stack([grad.norm() for grad in first.values()]).norm()
    gap = torch.stack([(second[name] - grad).norm() for name, grad in first.items()]).norm()
    assert (gap < 1e-6 * norm) if num_passes == 1 else (gap > 1e-3 * norm)


@pytest.mark.parametrize(("mode", "middle"), [("unroll", True), ("em_detach", False)])
def test_which_passes_keep_a_graph(bench, mode, middle):
    """Every pass is one call of the model, without ids, a mask to read, or a cache, with positions of four rows."""
    seen = []

    def look(module, arguments, named):
        assert arguments == () and "input_ids" not in named
        assert named["attention_mask"] is NO_MASK and named["use_cache"] is False
        assert named["position_ids"].shape[0] == 4
        seen.append(torch.is_grad_enabled())

    hook = bench.model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        bench.objective(softctx_grad_mode=mode)(collate(bench.segments(), num_passes=4))
    finally:
        hook.remove()
    assert seen == [True, middle, middle, True]


@pytest.mark.parametrize("num_passes", [2, 3])
def test_the_unrolled_gradient_is_that_of_differences(bench, num_passes):
    """The whole loop as one function of the weights, along random directions; fp32, so to half a per cent.

    Without CIoU, whose alpha is held constant by the gradient and not by a difference.
    """
    objective = bench.objective(softctx_grad_mode="unroll", bbox_ciou_weight=0.0)
    pack = collate(bench.segments()[:1], num_passes=num_passes)
    _, analytic = gradients(bench, objective, [pack])
    generator, step = torch.Generator().manual_seed(0), 2e-5
    parameters = dict(bench.model.named_parameters())
    for _ in range(3):
        # along the gradient's own signs of a random half of the entries: a slope well above the noise of fp32
        direction = {
            name: torch.randint(0, 2, grad.shape, generator=generator) * grad.sign() * p.detach().abs().mean()
            for (name, grad), p in zip(analytic.items(), parameters.values(), strict=True)
        }
        slope = sum((analytic[name] * way).sum().item() for name, way in direction.items())
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                for name, way in direction.items():
                    parameters[name] += sign * step * way
                ends.append(objective(pack)[0].item())
                for name, way in direction.items():
                    parameters[name] -= sign * step * way
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(slope, rel=0.005)

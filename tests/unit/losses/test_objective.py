"""The objective on the real tiny model: packing, passes, dummy packs."""

from dataclasses import replace

import pytest
import torch

from ds_stage2ab.losses.attention import BY_SEGMENT
from ds_stage2ab.losses.objective import BOX_TERMS, COORDINATE_TERMS, TERM_NAMES
from ds_stage2ab.packs.collate import collate, dummy_pack
from tests.unit.parts import PLAIN_LOSS, load_bench


@pytest.fixture(scope="module")
def bench(quickstart):
    return load_bench(quickstart, num_samples=5)


def logits(bench, pack):
    """[T, V] of every position."""
    objective = bench.objective()
    vision = bench.model.get_image_features(pack.vision.pixel_values, pack.vision.image_grid_thw, return_dict=True)
    inputs = bench.model.get_input_embeddings()(pack.input_ids)
    with torch.no_grad():
        return objective._logits(inputs, pack, vision, torch.arange(len(pack.input_ids)))


def gradient(bench, loss):
    bench.model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in bench.model.named_parameters() if p.grad is not None}


@pytest.fixture(params=[BY_SEGMENT, "sdpa", "eager"])
def attention(request, bench):
    """Each attention that packs can have, on the language model."""
    bench.model.set_attn_implementation({"text_config": request.param})
    yield
    bench.model.set_attn_implementation({"text_config": BY_SEGMENT})


@pytest.mark.usefixtures("attention")
def test_packed_logits_equal_those_of_the_sample_alone(bench):
    segments = bench.segments()
    pack = collate(segments, num_passes=1)
    packed = logits(bench, pack)
    for place, segment in enumerate(segments):
        start, end = pack.boundaries[place : place + 2]
        alone = logits(bench, collate([segment], num_passes=1))
        assert (packed[start:end] - alone).abs().max() <= 1e-6 * alone.abs().max()


@pytest.mark.usefixtures("attention")
def test_changing_a_segment_changes_no_bit_of_another(bench):
    first, second, third = bench.segments()[:3]
    swapped = second.input_ids.clone()
    swapped[-5:] = swapped[-5:].flip(0)
    other_image = replace(second.vision, pixel_values=second.vision.pixel_values.flip(0))
    changed = replace(second, input_ids=swapped, vision=other_image)
    before = logits(bench, collate([first, second, third], num_passes=1))
    after = logits(bench, collate([first, changed, third], num_passes=1))
    start, end = len(first.input_ids), len(first.input_ids) + len(second.input_ids)
    assert not torch.equal(before[start:end], after[start:end])
    assert torch.equal(before[:start], after[:start])
    assert torch.equal(before[end:], after[end:])


def test_loss_of_a_pack_is_the_sum_of_its_samples(bench):
    segments, objective = bench.segments(), bench.objective()
    together, terms = objective(collate(segments, num_passes=1))
    alone = [objective(collate([segment], num_passes=1)) for segment in segments]
    assert together.item() == pytest.approx(sum(loss.item() for loss, _ in alone), rel=1e-6)
    for name in TERM_NAMES:
        assert terms[name][0].item() == pytest.approx(sum(t[name][0].item() for _, t in alone), rel=1e-5)
        assert terms[name][1].item() == sum(t[name][1].item() for _, t in alone)


def test_parts_sum_to_the_loss(bench):
    loss, terms = bench.objective()(collate(bench.segments(), num_passes=1))
    parts = terms["loss/text_ce"][0].item() + sum(
        getattr(PLAIN_LOSS, f"{name}_weight") * terms[f"loss/{name}"][0].item() for name in BOX_TERMS + COORDINATE_TERMS
    )
    assert parts == pytest.approx(loss.item(), rel=1e-6)
    assert terms["loss/total"][0].item() == pytest.approx(loss.item(), rel=1e-6)


def test_text_ce_is_plain_cross_entropy_where_weights_say(bench):
    segment = bench.segments(desc_ce_weight=0.5)[0]
    pack = collate([segment], num_passes=1)
    log_p = logits(bench, pack).log_softmax(-1)
    ce = -log_p[:-1].gather(1, pack.input_ids[1:, None])[:, 0]
    weights = pack.weights[1:]
    assert set(weights.unique().tolist()) == {0.0, 0.5, 1.0}
    expected = (ce * weights).sum() / weights.sum()
    _, terms = bench.objective()(pack)
    assert terms["loss/text_ce"][0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_pack_that_is_not_real_weighs_nothing_and_reaches_everything(bench):
    segment = max(bench.segments(), key=lambda segment: len(segment.slots))
    objective = bench.objective()
    loss, terms = objective(dummy_pack(segment, num_passes=2))
    grads = gradient(bench, loss)
    assert loss.item() == 0.0
    assert all(total.item() == 0 and count.item() == 0 for total, count in terms.values())
    assert set(grads) == {name for name, _ in bench.model.named_parameters()}
    assert all(not grad.any() for grad in grads.values())


def test_a_sample_without_objects_has_no_geometry_and_finite_gradients(bench):
    segment = next(s for s in bench.segments() if len(s.slots))
    cut = len(bench.samples[0].prompt_ids)
    empty = replace(
        bench.segments()[0],
        weights=torch.where(torch.arange(len(bench.segments()[0].input_ids)) < cut, 0.0, 1.0),
        slots=torch.zeros(0, dtype=torch.long),
        bins=torch.zeros(0, dtype=torch.long),
    )
    assert len(segment.slots) > 0
    loss, terms = bench.objective()(collate([empty], num_passes=1))
    assert loss.item() == pytest.approx(terms["loss/text_ce"][0].item(), rel=1e-6)
    assert terms["coord/mass"][1].item() == 0
    assert all(torch.isfinite(grad).all() for grad in gradient(bench, loss).values())


def test_nothing_supervised_gives_loss_zero_and_gradients(bench):
    segment = bench.segments()[0]
    none = torch.zeros(0, dtype=torch.long)
    silent = replace(segment, weights=torch.zeros_like(segment.weights), slots=none, bins=none)
    loss, _ = bench.objective()(collate([silent], num_passes=2))
    grads = gradient(bench, loss)
    assert loss.item() == 0.0
    assert set(grads) == {name for name, _ in bench.model.named_parameters()}
    assert all(not grad.any() for grad in grads.values())


def test_text_ce_is_read_from_the_first_pass(bench):
    pack = collate(bench.segments(), num_passes=1)
    _, one = bench.objective()(pack)
    _, two = bench.objective()(replace(pack, num_passes=2))
    assert two["loss/text_ce"][0].item() == pytest.approx(one["loss/text_ce"][0].item(), rel=1e-6)
    assert two["loss/coord_soft_ce"][0].item() != one["loss/coord_soft_ce"][0].item()


def test_both_gradient_modes_have_one_forward_value(bench):
    pack = collate(bench.segments(), num_passes=3)
    unrolled, _ = bench.objective(softctx_grad_mode="unroll")(pack)
    detached, _ = bench.objective(softctx_grad_mode="em_detach")(pack)
    assert detached.item() == pytest.approx(unrolled.item(), rel=1e-6)
    first, second = gradient(bench, unrolled), gradient(bench, detached)
    assert any(not torch.allclose(first[name], second[name], rtol=1e-3) for name in first)


TEXT_ALONE = {f"{name}_weight": 0.0 for name in BOX_TERMS + COORDINATE_TERMS}


@pytest.mark.parametrize("mode", ["em_detach", "unroll"])
@pytest.mark.parametrize("num_passes", [2, 3])
def test_further_passes_leave_the_gradient_of_text_ce_alone(bench, mode, num_passes):
    # whatever the mode: text CE reads the first pass, and what the later ones send back is weighted by zero
    objective, pack = bench.objective(softctx_grad_mode=mode, **TEXT_ALONE), collate(bench.segments(), num_passes=1)
    one = gradient(bench, objective(pack)[0])
    more = gradient(bench, objective(replace(pack, num_passes=num_passes))[0])
    assert one.keys() == more.keys()
    assert any(grad.any() for grad in one.values())
    for name, grad in one.items():
        torch.testing.assert_close(more[name], grad, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize(("mode", "reaches_first"), [("unroll", True), ("em_detach", False)])
def test_only_unroll_sends_the_geometry_back_to_the_first_pass(bench, mode, reaches_first):
    # no text is supervised, so that the first pass's logits do nothing but feed the second
    pack, seen = collate(bench.segments(), num_passes=2), []
    hook = bench.model.lm_head.register_forward_hook(lambda module, arguments, output: seen.append(output))
    try:
        loss, _ = bench.objective(softctx_grad_mode=mode)(replace(pack, weights=torch.zeros_like(pack.weights)))
    finally:
        hook.remove()
    first, last = torch.autograd.grad(loss, seen, allow_unused=True)
    assert last.any()
    assert (first is not None and bool(first.any())) == reaches_first


@pytest.mark.parametrize(("mode", "reached"), [("unroll", True), ("em_detach", False)])
def test_only_unroll_reaches_the_embeddings_that_an_expectation_is_made_of(bench, mode, reached):
    seen = []
    hook = bench.model.get_input_embeddings().register_forward_hook(lambda module, asked, output: seen.append(output))
    try:
        loss, _ = bench.objective(softctx_grad_mode=mode)(collate(bench.segments(), num_passes=2))
    finally:
        hook.remove()
    (coordinates,) = [output for output in seen if len(output) == 1000]
    (grad,) = torch.autograd.grad(loss, [coordinates], allow_unused=True)
    assert (grad is not None and bool(grad.any())) == reached


def inputs_of_passes(bench, pack, **changes):
    """`inputs_embeds` [T, D] of each pass, as the model itself received them."""
    seen = []
    hook = bench.model.register_forward_pre_hook(
        lambda module, arguments, named: seen.append(named["inputs_embeds"][0].detach().clone()), with_kwargs=True
    )
    try:
        bench.objective(**changes)(pack)
    finally:
        hook.remove()
    return seen


@pytest.mark.parametrize("mode", ["unroll", "em_detach"])
def test_placeholder_rows_are_bitwise_those_of_the_image_token_in_every_pass(bench, mode):
    pack = collate(bench.segments(), num_passes=3)
    placeholder = bench.model.get_input_embeddings().weight[bench.model.config.image_token_id].detach()
    is_image = pack.input_ids == bench.model.config.image_token_id
    assert is_image.sum() == sum(grid.prod() // 4 for grid in pack.vision.image_grid_thw)  # 2 x 2 patches are merged
    passes = inputs_of_passes(bench, pack, softctx_grad_mode=mode)
    assert len(passes) == 3
    for inputs in passes:
        assert torch.equal(inputs[is_image].view(torch.int32), placeholder.expand(is_image.sum(), -1).view(torch.int32))
        # and no other row is: the model finds its images by comparing with this very embedding
        assert torch.equal((inputs == placeholder).all(-1), is_image)


@pytest.mark.parametrize("mode", ["unroll", "em_detach"])
def test_only_coordinate_slots_change_between_passes(bench, mode):
    pack = collate(bench.segments(), num_passes=3)
    first, *later = inputs_of_passes(bench, pack, softctx_grad_mode=mode)
    assert torch.equal(first, bench.model.get_input_embeddings()(pack.input_ids))
    is_slot = torch.zeros(len(pack.input_ids), dtype=torch.bool)
    is_slot[pack.slots] = True
    for inputs in later:
        assert torch.equal((inputs != first).any(-1), is_slot)
    assert not torch.equal(*later)


def test_a_slot_reads_the_embedding_that_the_pass_before_expected_there(bench):
    pack = collate(bench.segments(), num_passes=2)
    _, second = inputs_of_passes(bench, pack, softctx_temperature=0.5)
    coordinate_ids = torch.tensor(bench.vocabulary.coordinate_ids)
    inside = logits(bench, pack)[pack.slots - 1][:, coordinate_ids]
    expected = torch.softmax(inside / 0.5, dim=-1) @ bench.model.get_input_embeddings().weight[coordinate_ids]
    torch.testing.assert_close(second[pack.slots], expected, rtol=1e-5, atol=1e-6)

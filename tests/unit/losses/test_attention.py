"""Attention by segments against the model's own masked attention of the whole pack."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ds_stage2ab.losses.attention import BY_SEGMENT, attend_by_segment, segment_arguments
from ds_stage2ab.packs.collate import collate
from tests.unit.parts import load_bench


@pytest.fixture
def bench(quickstart):
    return load_bench(quickstart, num_samples=5)


def gradients(bench, pack):
    bench.model.zero_grad()
    loss, _ = bench.objective()(pack)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in bench.model.named_parameters()}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_gives_the_loss_and_gradient_of_the_mask(bench, checkpointing):
    if checkpointing:
        bench.model.train()
        bench.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    pack = collate(bench.segments(), num_passes=2)
    assert bench.model.config.text_config._attn_implementation == BY_SEGMENT
    loss, by_segment = gradients(bench, pack)
    bench.model.set_attn_implementation({"text_config": "sdpa"})
    assert segment_arguments(bench.model, pack.boundaries) == {"attention_mask": None}
    masked_loss, masked = gradients(bench, pack)
    assert loss == pytest.approx(masked_loss, rel=1e-6)
    for name, gradient in masked.items():
        assert (by_segment[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name


class Largest(TorchDispatchMode):
    """Keeps the number of values of the largest tensor that an operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [leaf.numel() for leaf in tree_flatten(out)[0] if isinstance(leaf, torch.Tensor)]
        self.numel = max(self.numel, *made, 0)
        return out


def largest(act) -> int:
    with torch.no_grad(), Largest() as mode:
        act()
    return mode.numel


def test_no_mask_of_the_packs_length_squared_is_built(bench):
    """Of all tensors of a forward none has so many values; with `sdpa` one has."""
    pack = collate(bench.segments() * 3, num_passes=1)
    squared = len(pack.input_ids) ** 2
    objective = bench.objective()
    assert largest(lambda: objective(pack)) < squared
    bench.model.set_attn_implementation({"text_config": "sdpa"})
    assert largest(lambda: objective(pack)) >= squared


def test_each_segment_attends_to_itself_and_its_past_alone():
    """One head, values that tell positions: with equal keys each token gets the mean of its segment so far."""
    keys, values = (
        torch.zeros(1, 1, 5, 2),
        torch.tensor([1.0, 3.0, 10.0, 20.0, 60.0]).view(1, 1, 5, 1).expand(-1, -1, -1, 2),
    )
    out, _ = attend_by_segment(torch.nn.Module(), keys, keys, values, None, [2, 3])
    assert out[0, :, 0, 0].tolist() == pytest.approx([1, 2, 10, 15, 30])  # (1 + 3) / 2, (10 + 20) / 2, 90 / 3


def test_lengths_that_are_not_those_of_the_pack_are_a_mistake():
    tensor = torch.zeros(1, 1, 5, 2)
    with pytest.raises(RuntimeError, match="split"):
        attend_by_segment(torch.nn.Module(), tensor, tensor, tensor, None, [2, 2])


def test_what_is_no_pack_has_the_usual_attention(bench):
    """Padding on the left of the shorter of two prompts changes nothing, as the mask is built for them."""
    segment = bench.segments()[0]
    ids = segment.input_ids[None]
    arguments = {
        "mm_token_type_ids": (ids == bench.model.config.image_token_id).int(),
        "pixel_values": segment.vision.pixel_values,
        "image_grid_thw": segment.vision.image_grid_thw,
    }
    with torch.no_grad():
        seen = bench.model.eval()(input_ids=ids, **arguments).logits
        bench.model.set_attn_implementation({"text_config": "sdpa"})
        torch.testing.assert_close(seen, bench.model(input_ids=ids, **arguments).logits, rtol=0, atol=0)

"""Which tensors a server is sent, and which of them travel together."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ds_stage2ab.rollout.server.buckets import buckets, split_by_training


@dataclass(frozen=True)
class Needed:
    """A tensor of a checkpoint, by the parameters it is made from."""

    name: str
    needs: tuple[str, ...]


@pytest.fixture
def model():
    """Parameters a to e of 40, 20, 60, 200 and 12 bytes."""
    made = nn.Module()
    for name, count, dtype in (("a", 10, torch.float32), ("b", 10, torch.bfloat16), ("c", 15, torch.float32)):
        made.register_parameter(name, nn.Parameter(torch.zeros(count, dtype=dtype)))
    made.register_parameter("d", nn.Parameter(torch.zeros(50)))
    made.register_parameter("e", nn.Parameter(torch.zeros(3)))
    return made


def names(model: nn.Module, tensors: list[Needed], most_bytes: int) -> list[str]:
    return ["".join(one.name for one in bucket) for bucket in buckets(tensors, model, most_bytes)]


def plain(letters: str) -> list[Needed]:
    return [Needed(letter, (letter,)) for letter in letters]


def test_buckets_hold_at_most_so_many_bytes(model):
    # 40 + 20 = 60; with c 120; d is larger than any of these limits and travels alone; e begins a new one
    assert names(model, plain("abcde"), 60) == ["ab", "c", "d", "e"]
    assert names(model, plain("abcde"), 59) == ["a", "b", "c", "d", "e"]
    assert names(model, plain("abcde"), 120) == ["abc", "d", "e"]
    assert names(model, plain("abcde"), 332) == ["abcde"]
    assert names(model, plain("abcde"), 331) == ["abcd", "e"]


def test_a_large_tensor_does_not_take_a_later_one_with_it(model):
    assert names(model, plain("dea"), 60) == ["d", "ea"]


def test_a_tensor_weighs_what_it_is_made_from(model):
    """Merged of a base (200) and two adapters (20 + 12): 232."""
    merged = Needed("m", ("d", "b", "e"))
    assert names(model, [*plain("a"), merged, *plain("c")], 272) == ["am", "c"]
    assert names(model, [*plain("a"), merged, *plain("c")], 271) == ["a", "m", "c"]


def test_partitioned_parameters_weigh_what_they_are_whole(model):
    """ZeRO 3 leaves nothing of a parameter here, and its number of elements in `ds_numel`."""
    whole = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.data = torch.zeros(0, dtype=parameter.dtype)
        parameter.ds_numel = whole[name]
    assert names(model, plain("abcde"), 60) == ["ab", "c", "d", "e"]
    assert names(model, plain("abcde"), 331) == ["abcd", "e"]


def test_nothing_makes_no_bucket(model):
    assert buckets([], model, 100) == []


# --- what training changes --------------------------------------------------------------------------------------


def divided(trained, tensors):
    """Names of (what stays, what changes) when these parameters train."""
    made = nn.Module()
    for needed in {needed for tensor in tensors for needed in tensor.needs}:
        made.register_parameter(needed.replace(".", "/"), nn.Parameter(torch.zeros(1), requires_grad=needed in trained))
    model = SimpleNamespace(named_parameters=lambda: [(n.replace("/", "."), p) for n, p in made.named_parameters()])
    return tuple([one.name for one in part] for part in split_by_training(tensors, model))


ATTENTION, MLP = "layers.0.self_attn", "layers.0.mlp"
TENSORS = [
    Needed("embed_tokens.weight", ("embed_tokens.weight",)),
    Needed(f"{ATTENTION}.q_proj.weight", (f"{ATTENTION}.q_proj.base.weight", f"{ATTENTION}.q_proj.lora_A.weight")),
    Needed(f"{ATTENTION}.k_proj.weight", (f"{ATTENTION}.k_proj.weight",)),
    Needed(f"{MLP}.gate_proj.weight", (f"{MLP}.gate_proj.weight",)),
    Needed(f"{MLP}.up_proj.weight", (f"{MLP}.up_proj.weight",)),
    Needed("layers.0.input_layernorm.weight", ("layers.0.input_layernorm.weight",)),
    Needed("head.0.bias", ("head.0.bias",)),
]


@pytest.mark.parametrize(
    ("trained", "changing"),
    [
        ((), []),
        ([f"{ATTENTION}.q_proj.lora_A.weight"], [1, 2]),  # a server fuses q with k
        ([f"{MLP}.up_proj.weight"], [3, 4]),
        (["layers.0.input_layernorm.weight"], [5]),
        (["embed_tokens.weight", "head.0.bias"], [0, 6]),
    ],
)
def test_what_trains_takes_its_block_along(trained, changing):
    names = [one.name for one in TENSORS]
    still, moving = divided(trained, TENSORS)
    assert moving == [names[place] for place in changing]
    assert still == [name for name in names if name not in moving]


def test_what_is_made_of_no_parameter_may_change():
    assert divided((), [*TENSORS[:1], Needed("norm.running_mean", ())]) == (
        ["embed_tokens.weight"],
        ["norm.running_mean"],
    )

"""Which weights train: whole parts of the model, or low-rank adapters on their linear layers.

LoRA (Hu et al. 2021) adds B A x lora_alpha / lora_rank to the frozen W of a linear layer; DoRA (Liu et al. 2024)
rescales each row of the sum to a length that is learnt. Both start as W itself and are peft's own layers. The embedding
table and the head get none; `tuner.trainable_token_rows` trains the rows of the coordinate tokens beside the adapters,
in a small separate table laid over the frozen one. A tied head reads the same rows; an untied head stays frozen.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer as RowsLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from ds_stage2ab.config.sections import TunerSection

FULL, DORA = "full", "dora"
EMBEDDING = "embed_tokens"
"""The module that holds the rows of the tokens."""
_OVER_A_TABLE = ".token_adapter"  # part of every name in peft's layer of trained rows
_ADAPTED = "model."  # prefix of the parts; the head is outside of it
_ALIGNER = ("model.visual.merger.", "model.visual.deepstack_merger_list.")
_TOWER = "model.visual."
_PEFT_PREFIX = "base_model.model."  # of every name in peft's adapter files


def part_of(name: str) -> str:
    """The part of `model.freeze` that a parameter or module belongs to: `vision` (tower), `aligner`, `language`."""
    if name.startswith(_ALIGNER):
        return "aligner"
    return "vision" if name.startswith(_TOWER) else "language"


def freeze_parts(model: nn.Module, parts: tuple[str, ...]) -> None:
    """Freeze the named parts: `vision` (tower), `aligner` (mergers), `language` (with its head)."""
    for name, parameter in model.named_parameters():
        if part_of(name) in parts:
            parameter.requires_grad_(False)


def adapted_layers(model: nn.Module, frozen: tuple[str, ...]) -> list[str]:
    """Names of the linear layers of every part that is not frozen."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(_ADAPTED) and part_of(name) not in frozen
    ]


def add_adapters(
    model: nn.Module,
    tuner: TunerSection,
    frozen: tuple[str, ...],
    coordinate_ids: Sequence[int],
    *,
    seed: int,
    source: Path,
) -> None:
    """Put adapters on the linear layers of the parts that train, in place, and freeze everything else.

    Args:
        model: changed in place; its outputs stay the same.
        tuner: `tuner` of the config, with adapters.
        frozen: `model.freeze` of the config.
        coordinate_ids: the rows that `tuner.trainable_token_rows` may name.
        seed: of the adapters' initial weights: equal on every rank.
        source: the checkpoint folder, named in the adapter's own config.
    """
    precision = model.dtype
    config = LoraConfig(
        r=tuner.lora_rank,
        lora_alpha=tuner.lora_alpha,
        lora_dropout=0.0,
        use_dora=tuner.type == DORA,
        target_modules=adapted_layers(model, frozen),
        trainable_token_indices={EMBEDDING: list(coordinate_ids)} if tuner.trainable_token_rows else None,
        base_model_name_or_path=str(source),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    # In the model's precision: the engine holds fp32 copies of what trains in bf16. Parameters alone: a cast of the
    # whole model would round its rotary frequencies too.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(precision)


def adapters_of(model: nn.Module) -> dict[str, LoraLayer]:
    """Name -> layer with an adapter; empty for a model that trains in full."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """A tensor of the plain model, with its adapters merged in."""

    name: str
    # in a plain model
    needs: tuple[str, ...]
    # names of the parameters that it is made from
    make: Callable[[], Tensor]
    # computes it while these are gathered; does not change the model


def merged_tensors(model: nn.Module) -> list[Merged]:
    """Every tensor of the plain model, tied ones once.

    A layer with adapters is merged in a copy and in fp32, and rounded once to its own precision.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    changed = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer | RowsLayer)}
    made, seen = [], set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        layer, _, leaf = name.rpartition(".base_layer.")
        inside = any(name.startswith(f"{owner}.") for owner in changed)
        if (inside and layer not in changed) or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if layer in changed and leaf == "weight":
            module = changed[layer]
            needs = tuple(sorted({names[id(parameter)] for parameter in module.parameters()}))
            made.append(Merged(name=_plain(layer, leaf), needs=needs, make=partial(_merged, module)))
        else:
            needs = (names[id(tensor)],) if id(tensor) in names else ()
            made.append(Merged(name=_plain(layer, leaf) if inside else name, needs=needs, make=tensor.detach))
    return made


def _plain(layer: str, leaf: str) -> str:
    return f"{layer.removesuffix(_OVER_A_TABLE)}.{leaf}"


@torch.no_grad()
def _merged(layer: LoraLayer | RowsLayer) -> Tensor:
    if isinstance(layer, RowsLayer):
        return layer.get_merged_weights(layer.active_adapters)
    copied = copy.deepcopy(layer).float()
    copied.merge()
    return copied.get_base_layer().weight.to(layer.get_base_layer().weight.dtype)


def save_adapter(model: nn.Module, destination: Path) -> None:
    """Write the adapters as peft does: `PeftModel.from_pretrained(base, destination)` loads them."""
    (config,) = model.peft_config.values()
    config.save_pretrained(destination)
    weights = get_peft_model_state_dict(model)
    named = {f"{_PEFT_PREFIX}{name}": tensor.contiguous() for name, tensor in weights.items()}
    save_file(named, destination / "adapter_model.safetensors", metadata={"format": "pt"})

"""Which weights train: whole parts of the model, or low-rank adapters on their linear layers.

LoRA (Hu et al. 2021) adds B A x lora_alpha / lora_rank to the frozen W of a linear layer; DoRA (Liu et al. 2024)
rescales each row of the sum to a length that is learnt. Both start as W itself and are peft's own layers. The embedding
table and the head get none; `tuner.trainable_token_rows` trains the rows of the coordinate tokens beside the adapters,
in a small table of their own that is put over the frozen one. A tied head reads the same rows; a head of its own stays.
"""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from ds_stage2ab.config.sections import TunerSection

FULL, DORA = "full", "dora"
EMBEDDING = "embed_tokens"
"""The module that holds the rows of the tokens."""
_OVER_A_TABLE = ".token_adapter"  # of every name in peft's layer of trained rows
_ADAPTED = "model."  # what holds the parts; the head stands beside it
_ALIGNER = ("model.visual.merger.", "model.visual.deepstack_merger_list.")
_TOWER = "model.visual."
_PEFT_PREFIX = "base_model.model."  # of every name in peft's adapter files


def part_of(name: str) -> str:
    """The part of `model.freeze` that a parameter or module belongs to: `vision` (tower), `aligner`, `language`."""
    if name.startswith(_ALIGNER):
        return "aligner"
    return "vision" if name.startswith(_TOWER) else "language"


def freeze_parts(model: nn.Module, parts: tuple[str, ...]) -> None:
    """Take the named parts out of training: `vision` (tower), `aligner` (mergers), `language` (with its head)."""
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
        model: its outputs stay what they are.
        tuner: `tuner` of the config, with adapters.
        frozen: `model.freeze` of the config.
        coordinate_ids: the rows that `tuner.trainable_token_rows` may name.
        seed: of the adapters' first weights: equal on every rank.
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
    # As the rest of the model: the engine holds fp32 copies of what trains in bf16. Parameters alone: a cast of the
    # whole model would round its rotary frequencies too.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(precision)


def adapters_of(model: nn.Module) -> dict[str, LoraLayer]:
    """Name -> layer with an adapter; empty for a model that trains in full."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


@torch.no_grad()
def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the model without adapters whose outputs are those of `model`; nothing in it is changed.

    Each layer is merged in a copy and in fp32, and rounded once to its own precision.
    """
    layers, tables = adapters_of(model), _tables(model)
    weights = {}
    for name, tensor in model.state_dict().items():
        layer, _, leaf = name.rpartition(".base_layer.")
        if layer in layers:
            weights[f"{layer}.{leaf}"] = _merged(layers[layer]) if leaf == "weight" else tensor
        elif layer in tables:
            weights[f"{layer.removesuffix(_OVER_A_TABLE)}.{leaf}"] = tables[layer]
        elif not _is_of_an_adapter(name, layers) and _OVER_A_TABLE not in name:
            weights[name] = tensor
    return weights


def _tables(model: nn.Module) -> dict[str, Tensor]:
    """Name -> the table with its trained rows, of each layer that has some; tied ones are one tensor."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, TrainableTokensLayer)}
    merged: dict[int, Tensor] = {}
    for layer in layers.values():
        rows = id(layer.trainable_tokens_delta)
        if rows not in merged:
            merged[rows] = layer.get_merged_weights(layer.active_adapters)
    return {name: merged[id(layer.trainable_tokens_delta)] for name, layer in layers.items()}


def _merged(layer: LoraLayer) -> Tensor:
    copied = copy.deepcopy(layer).float()
    copied.merge()
    return copied.get_base_layer().weight.to(layer.get_base_layer().weight.dtype)


def _is_of_an_adapter(name: str, layers: dict[str, LoraLayer]) -> bool:
    owner, _, _ = name.partition(".lora_")
    return owner != name and owner in layers


def save_adapter(model: nn.Module, destination: Path) -> None:
    """Write the adapters as peft does: `PeftModel.from_pretrained(base, destination)` loads them."""
    (config,) = model.peft_config.values()
    config.save_pretrained(destination)
    weights = get_peft_model_state_dict(model)
    named = {f"{_PEFT_PREFIX}{name}": tensor.contiguous() for name, tensor in weights.items()}
    save_file(named, destination / "adapter_model.safetensors", metadata={"format": "pt"})

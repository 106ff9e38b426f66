"""Which tensors a server is sent: everything, or what training changes alone; and which of them travel together."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, nn


class ExportTensor(Protocol):
    """A tensor of a plain checkpoint, and the parameters that it is made from; `engine.tuner.Merged` is one."""

    name: str
    needs: tuple[str, ...]
    make: Callable[[], Tensor]


def split_by_training(
    tensors: Sequence[ExportTensor], model: nn.Module
) -> tuple[list[ExportTensor], list[ExportTensor]]:
    """(what stays as it is while the model trains, everything else), each in order.

    A server rebuilds a layer from all of its tensors, and it fuses neighbours (q, k and v; gate and up), so one that
    trains takes the others of its block along: those with the same name but for the last two parts. A tensor that is
    made from no parameter is a buffer, which may change.

    Args:
        model: its parameters say whether they train.
    """
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    changing = {_block(one.name) for one in tensors if not one.needs or trained.intersection(one.needs)}
    still = [one for one in tensors if _block(one.name) not in changing]
    return still, [one for one in tensors if _block(one.name) in changing]


def _block(name: str) -> str:
    """ "layers.0.self_attn" of "layers.0.self_attn.q_proj.weight"."""
    return name.rsplit(".", 2)[0]


def buckets(tensors: Sequence[ExportTensor], model: nn.Module, most_bytes: int) -> list[list[ExportTensor]]:
    """Split tensors into buckets, in order: at most so many bytes each, or one larger tensor.

    Args:
        model: holds the parameters that they are made from, whole or partitioned by ZeRO 3.
        most_bytes: of the parameters of a bucket together.
    """
    sizes = {name: _whole_size(parameter) for name, parameter in model.named_parameters()}
    found: list[list[ExportTensor]] = []
    room = 0
    for tensor in tensors:
        size = sum(sizes[name] for name in tensor.needs)
        if not found or (found[-1] and size > room):
            found.append([])
            room = most_bytes
        found[-1].append(tensor)
        room -= size
    return found


def _whole_size(parameter: nn.Parameter) -> int:
    """Bytes of the whole parameter: ZeRO 3 keeps its number of elements in `ds_numel`."""
    count = parameter.ds_numel if hasattr(parameter, "ds_numel") else parameter.numel()
    return count * parameter.element_size()

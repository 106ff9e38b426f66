"""Linear layers for few rows: on a CPU their fp32 weights are kept a second time, in the layout of oneDNN.

A pass of decoding multiplies a few rows by each weight. What `torch.nn.functional.linear` calls is 1.5 to 2 times
slower at that than oneDNN with a weight that was reordered beforehand; for one row, and for small weights, it is
faster. Sums are added up in another order, as in another batch size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

FEW_ROWS = 8
"""Rows that the layout is made for; it serves more as well."""
SMALLEST = 1 << 18
"""Elements of a weight that is worth it: below, the call itself costs more than it saves."""
IMAGES = "visual"
"""Name of the vision tower, which has many rows."""


@contextmanager
def packed_linears(model: nn.Module) -> Iterator[None]:
    """Inside, large linear layers use packed weights, which are freed at the end; the weights may not change inside."""
    layers = [layer for name, layer in model.named_modules() if IMAGES not in name.split(".") and _is_worth_it(layer)]
    try:
        for layer in layers:
            packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), FEW_ROWS)
            layer.forward = partial(_forward, layer, packed)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _is_worth_it(layer: nn.Module) -> bool:
    if type(layer) is not nn.Linear or not torch.backends.mkldnn.is_available():
        return False
    weight = layer.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= SMALLEST


def _forward(layer: nn.Linear, packed: Tensor, rows: Tensor) -> Tensor:
    if rows.numel() == layer.in_features:
        return nn.functional.linear(rows, layer.weight, layer.bias)
    flat = rows.reshape(-1, layer.in_features)
    out = torch.ops.mkldnn._linear_pointwise(flat, packed, layer.bias, "none", [], "")
    return out.view(*rows.shape[:-1], layer.out_features)

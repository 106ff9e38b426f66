"""Attention of single queries over lines of memory, as many for each as it has: the rules of `attend_slots`.

Legend: N queries, L lines, C the most lines of a query, H key heads, G query heads for each of them, D width of a head.
"""

import torch
from torch import Tensor


def attend_slots(
    queries: Tensor, keys: Tensor, values: Tensor, first: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    """[N, H * G, D]: for each query the mean of the values that it sees, weighted by softmax(scale * query . key)."""
    check_slots(queries, keys, values, first, lengths)
    columns = torch.arange(int(lengths.max()) if len(lengths) else 0)
    seen_NC = columns < lengths[:, None]
    lines_NC = first[:, None] + columns.minimum(lengths[:, None] - 1)
    queries_NHGD = queries.unflatten(1, (keys.shape[1], queries.shape[1] // keys.shape[1]))
    scores_NHGC = scale * torch.einsum("nhgd,nchd->nhgc", queries_NHGD, keys[lines_NC])
    weights_NHGC = scores_NHGC.masked_fill(~seen_NC[:, None, None], -torch.inf).softmax(-1)
    return torch.einsum("nhgc,nchd->nhgd", weights_NHGC, values[lines_NC]).reshape(queries.shape)


def check_slots(queries: Tensor, keys: Tensor, values: Tensor, first: Tensor, lengths: Tensor) -> None:
    """The sentences of `csrc/registration.cpp`, in its order."""
    for name, tensor in {"queries": queries, "keys": keys, "values": values}.items():
        if tensor.dtype != torch.float32 or tensor.dim() != 3 or not tensor.shape[1]:
            raise ValueError(f"{name} must be float32 with 3 axes, the second of at least one head")
    if keys.shape != values.shape or keys.shape[2] != queries.shape[2] or queries.shape[1] % keys.shape[1]:
        raise ValueError(
            "keys and values must be alike, as wide as the queries, with a head for so many query heads each"
        )
    for name, tensor in {"first": first, "lengths": lengths}.items():
        if tensor.dtype != torch.int64 or tensor.shape != queries.shape[:1]:
            raise ValueError(f"{name} must be int64, one for each query")
    if not bool(((first >= 0) & (lengths > 0) & (first <= len(keys) - lengths)).all()):
        raise ValueError("each query must see a line at least, and lines that are there")

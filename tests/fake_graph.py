"""CUDA graphs that are not there: what is captured is written down op by op, and done again on the same tensors.

As on a device, a graph reads and writes the tensors of its capture, keeps every number that the host has put in, and
refuses what would make the host wait, as does a stream while `set_sync_debug_mode("error")` holds. Unlike on a device,
the work is also done while it is captured.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "bincount")
"""Operations that a device must have finished before the host goes on."""
READING = ("tolist", "numpy", "__array__")
"""What reads memory without an operation."""


class Stream:
    """Work on it is done at once."""

    def wait_stream(self, other: "Stream") -> None:
        assert isinstance(other, Stream)


class NoWaiting(TorchFunctionMode):
    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.__name__ in READING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func.__name__}")
        return func(*args, **(kwargs or {}))


class Recording(TorchDispatchMode):
    """Args: steps: what is done, in order."""

    def __init__(self, steps: list[tuple]) -> None:
        super().__init__()
        self.steps = steps

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.overloadpacket.__name__ in WAITING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func.overloadpacket.__name__}")
        result = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, _tensors(result)))
        return result


class CUDAGraph:
    def __init__(self) -> None:
        self.steps: list[tuple] = []
        self.replays: list[None] = []

    def replay(self) -> None:
        self.replays.append(None)
        with torch._C.DisableTorchFunction():
            for func, args, kwargs, before in self.steps:
                for old, new in zip(before, _tensors(func(*args, **kwargs)), strict=True):
                    if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                        old.copy_(new)


class FakeGraphs:
    """In the place of what `torch.cuda` has for graphs.

    Args:
        put: `monkeypatch.setattr`.
    """

    def __init__(self, put: Callable[[Any, str, Any], None]) -> None:
        self.graphs: list[ref[CUDAGraph]] = []
        self.replays: list[list[None]] = []
        # of each of them
        self.mode: int | str = 0
        self.pool = object()
        self.current = Stream()
        names = {
            "Stream": Stream,
            "stream": self._stream,
            "current_stream": lambda: self.current,
            "CUDAGraph": CUDAGraph,
            "graph": self._graph,
            "graph_pool_handle": lambda: self.pool,
            "get_sync_debug_mode": lambda: self.mode,
            "set_sync_debug_mode": lambda mode: setattr(self, "mode", mode),
        }
        for name, value in names.items():
            put(torch.cuda, name, value)

    @contextmanager
    def _stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            with NoWaiting(), Recording([]):  # a warm-up: all work on a stream is one
                yield
        finally:
            self.current = before

    @contextmanager
    def _graph(self, graph: CUDAGraph, *, pool: Any, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        assert self.mode != "error" and pool is self.pool and capture_error_mode == "thread_local"
        with NoWaiting(), Recording(graph.steps):
            yield
        self.graphs.append(ref(graph))
        self.replays.append(graph.replays)


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.numel()]

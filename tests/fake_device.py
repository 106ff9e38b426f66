"""A GPU that is not there: tensors that lie on the CPU and count as lying on `cuda:0`, for code that moves tensors.

Inside `fake_device()` whatever is moved to or made on `cuda` is computed on the CPU with true numbers, says `cuda:0`
when asked for its device, and cannot meet a tensor of the CPU but where a GPU's could: a copy, an index, a single
value. What a tensor counts as belongs to its storage, so views, `.data` and parameters made of it count alike.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
HOST_ONLY = ("numpy", "__array__", "data_ptr")
"""What reads a tensor's memory, and cannot be asked of a GPU's."""
ABOUT_DEVICES = ("device", "_parse_to")
"""What makes a device's name, and no tensor."""
MAY_MIX = ("copy_", "_has_compatible_shallow_copy_type", "set_data", "data.__set__", "to", "type_as")
"""What copies from one device to the other, or puts one tensor in the place of another."""


class Mixture(RuntimeError):
    """Tensors of two devices in one operation, as torch says it."""


class FakeDevice(TorchFunctionMode):
    """Follows every call of torch's Python interface."""

    def __init__(self) -> None:
        super().__init__()
        self._there: dict[int, StorageWeakRef] = {}

    def is_there(self, tensor: Tensor) -> bool:
        """Whether it counts as lying on the GPU."""
        known = self._there.get(tensor.untyped_storage()._cdata)
        return known is not None and not known.expired()

    def _put(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._there[storage._cdata] = StorageWeakRef(storage)

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name, kwargs = _name(func), kwargs or {}
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        there = [tensor for tensor in tensors if self.is_there(tensor)]
        if name in ABOUT_DEVICES:
            return func(*args, **kwargs)
        if name == "device.__get__":
            return GPU if there else func(*args, **kwargs)
        if name == "is_cuda.__get__":
            return bool(there)
        if name == "is_cpu.__get__":
            return not there
        if there and (name in HOST_ONLY or "ds_stage2ab" in str(func)):
            raise Mixture(f"{name} of a tensor on {GPU}")
        target = _target(name, args, kwargs, self.is_there)
        if name not in MAY_MIX and target is None:
            self._refuse_mixture(name, args, tensors, there)
        result = func(*tree_map(_on_host, args), **tree_map(_on_host, kwargs))
        return self._placed(name, result, args, target, there)

    def _refuse_mixture(self, name: str, args: tuple, tensors: list[Tensor], there: list[Tensor]) -> None:
        if not there:
            return
        if name in ("__getitem__", "__setitem__"):  # a tensor on a GPU takes indices of both devices
            tensors = [args[0], *args[2:]] if self.is_there(args[0]) else tensors
        here = [t for t in tensors if isinstance(t, Tensor) and t.dim() and not self.is_there(t)]
        if here:
            sizes = ", ".join(str(list(tensor.shape)) for tensor in here)
            raise Mixture(f"{name}: expected all tensors on one device, found {GPU} and cpu (of shape {sizes})")

    def _placed(self, name: str, result: Any, args: tuple, target: torch.device | None, there: list[Tensor]) -> Any:
        """The result, counted to its device."""
        if name == "copy_" or name.endswith("__set__"):
            return result
        on_gpu = bool(there) if target is None else target.type == GPU.type

        def place(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            if on_gpu and not self.is_there(leaf):
                # A copy where it is still the tensor of the host that was moved
                leaf = leaf.clone() if any(leaf is one for one in args) else leaf
                self._put(leaf)
            elif not on_gpu and self.is_there(leaf):
                leaf = leaf.clone()
                self._there.pop(leaf.untyped_storage()._cdata, None)
            return leaf

        return tree_map(place, result)


@contextmanager
def fake_device() -> Iterator[FakeDevice]:
    with FakeDevice() as mode:
        yield mode


def _name(func: Callable) -> str:
    """`add`, `device.__get__`, ..."""
    owner = getattr(func, "__self__", None)
    name = getattr(func, "__name__", str(func))
    return f"{owner.__name__}.{name}" if name in ("__get__", "__set__") and owner is not None else name


def _is_gpu(value: Any) -> bool:
    if isinstance(value, str):
        return value.split(":")[0] == GPU.type
    return isinstance(value, torch.device) and value.type == GPU.type


def _is_host(value: Any) -> bool:
    return value == "cpu" if isinstance(value, str) else isinstance(value, torch.device) and value == CPU


def _on_host(value: Any) -> Any:
    return CPU if _is_gpu(value) else value


def _target(name: str, args: tuple, kwargs: dict, is_there: Callable[[Tensor], bool]) -> torch.device | None:
    """The device that a call names; None: that of its tensors."""
    if name in ("cpu", "cuda"):
        return CPU if name == "cpu" else GPU
    named = [*args[1:], *kwargs.values()] if name == "to" else [kwargs.get("device")]
    if name == "to" and any(isinstance(value, Tensor) for value in args[1:]):
        return GPU if is_there(args[1]) else CPU
    if any(map(_is_gpu, named)):
        return GPU
    return CPU if any(map(_is_host, named)) else None

"""Tensors -> safetensors files as Hugging Face names them, one file at a time in memory."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

SHARD_BYTES = 2**32
"""Largest size of a file, unless a single tensor is larger; also what is held in memory while a model is written."""
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class ShardWriter:
    """Writes tensors in the order in which they come.

    Args:
        folder: exists, and holds no weights yet.
        shard_bytes: largest size of a file.
        later: takes (a function that writes, bytes that it holds in memory) and calls it later, in order, beside what
            the caller goes on to do; tensors are copied then. None: files are written at once.
    """

    def __init__(
        self,
        folder: Path,
        *,
        shard_bytes: int = SHARD_BYTES,
        later: Callable[[Callable[[], None], int], None] | None = None,
    ) -> None:
        self.folder = folder
        self.shard_bytes = shard_bytes
        self._copies = later is not None
        self._do = later or (lambda write, num_bytes: write())
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._shards: list[list[str]] = []
        # names in each file
        self._total = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Add one tensor; where files are written at once the caller must not change it before `close`."""
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._pending_bytes + size > self.shard_bytes:
            self._flush()
        self._pending[name] = tensor.to("cpu", copy=self._copies).contiguous()
        self._pending_bytes += size
        self._total += size

    def close(self) -> None:
        """Write the rest, and name the files: one alone is `model.safetensors`, several have an index."""
        self._flush()
        self._do(self._name, 0)

    def _name(self) -> None:
        count = len(self._shards)
        names = [f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)]
        if count == 1:
            names = [SINGLE]
        for number, name in enumerate(names):
            self._partial(number).rename(self.folder / name)
        if count > 1:
            places = {tensor: name for name, shard in zip(names, self._shards, strict=True) for tensor in shard}
            index = {"metadata": {"total_size": self._total}, "weight_map": places}
            (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _flush(self) -> None:
        file = self._partial(len(self._shards))
        self._do(partial(save_file, self._pending, file, metadata={"format": "pt"}), self._pending_bytes)
        self._shards.append(list(self._pending))
        self._pending, self._pending_bytes = {}, 0

    def _partial(self, number: int) -> Path:
        return self.folder / f"model-{number + 1:05d}.partial"


class StoredTensors:
    """The tensors of a folder that `ShardWriter` has written; each is read when it is asked for.

    Args:
        folder: as `ShardWriter.close` left it.
    """

    def __init__(self, folder: Path) -> None:
        single = folder / SINGLE
        if single.is_file():
            with safe_open(single, framework="pt") as file:
                self._places = dict.fromkeys(file.keys(), SINGLE)
        else:
            self._places = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        self.folder = folder

    @property
    def names(self) -> set[str]:
        return set(self._places)

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.folder / self._places[name], framework="pt") as file:
            return file.get_tensor(name)

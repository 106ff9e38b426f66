"""Adds the 1,000 coordinate tokens `<|coord_0|>` .. `<|coord_999|>` to a Qwen3-VL checkpoint.

Works on folders, not on models: tokenizer and `config.json` are rewritten, each safetensors file that holds the
embedding table or an untied head is rewritten with more rows, everything else is copied. So it takes no more memory
than the largest shard, for any size.

Invariants:
- Each coordinate is one id; the ids are consecutive and ordered by k.
- Rows of ids that existed before keep their bits.
- The new rows are the mean of the old ones plus a curve that is smooth in k: neighbours start alike.
- The destination appears whole or not at all; what a killed call has left beside it goes with the next one.

Legend: V rows before, W rows after, D the model's width, K = 1000.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AddedToken, AutoTokenizer

from ds_stage2ab.codec.bins import MAX_BIN, NUM_BINS, coordinate_token
from ds_stage2ab.errors import ConfigError, EnvironmentFault, Stage2Error, printable
from ds_stage2ab.model_folder.checks import MODEL_TYPE, check_folder

TOKENS = tuple(map(coordinate_token, range(NUM_BINS)))
EMBEDDING_SUFFIX = "embed_tokens.weight"
HEAD_NAME = "lm_head.weight"
NUM_WAVES = 24  # cosines in the ramp: the finest has a half period of 999 / 24, about 42 bins
RAMP_AMPLITUDE = 1.0  # norm of the ramp, in typical norms of an old row around their mean
RAMP_SEED = 999  # one fixed set of directions: table and head, and every run, start from the same curve


def coordinate_ramp(width: int) -> torch.Tensor:
    """[K, D], fp64, mean 0 over k and mean squared norm D (an element is about 1): sum over j of
    j^-1/2 cos(pi j k / 999) u_j with fixed random orthonormal directions u_j."""
    num_waves = min(NUM_WAVES, width)
    generator = torch.Generator().manual_seed(RAMP_SEED)
    directions, _ = torch.linalg.qr(torch.randn(width, num_waves, generator=generator).double())
    order = torch.arange(1, num_waves + 1, dtype=torch.float64)
    place = torch.arange(NUM_BINS, dtype=torch.float64) / MAX_BIN
    waves = torch.cos(math.pi * place[:, None] * order[None, :]) / order.sqrt()
    ramp = waves @ directions.T
    ramp = ramp - ramp.mean(0)
    return ramp * math.sqrt(width) / ramp.square().sum(1).mean().sqrt()


def enlarge(rows: torch.Tensor, first_id: int) -> torch.Tensor:
    """[V, D] -> [W, D], W = max(V, first_id + K): rows before `first_id` unchanged, coordinates from there on. Rows of
    `rows` at and after `first_id` are padding that no token uses.

    In float64, so that the number of threads, which decides the order of sums, does not change the result."""
    old = rows[:first_id]
    mean = old.mean(0, dtype=torch.float64)
    second_moment = torch.linalg.vector_norm(old, dtype=torch.float64).square() / old.numel()
    spread = (second_moment - mean.square().mean()).sqrt()
    new = mean + RAMP_AMPLITUDE * spread * coordinate_ramp(rows.shape[1])
    tail = rows[first_id + NUM_BINS :]
    return torch.cat([rows[:first_id], new.to(rows.dtype), tail])


def read_config(source: Path) -> dict[str, object]:
    """`config.json` of a Qwen3-VL folder, or ConfigError."""
    fix = "give the folder of a Qwen3-VL checkpoint (config.json, tokenizer.json, *.safetensors)"
    path = source / "config.json"
    if not path.is_file():
        raise ConfigError("is no checkpoint folder: it has no config.json", where=str(source), fix=fix)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"is no JSON: {error}", where=str(path), fix=fix) from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != MODEL_TYPE:
        raise ConfigError(f"model_type is {kind!r}, and training loads {MODEL_TYPE} alone", where=str(path), fix=fix)
    if "text_config" not in config or not any(source.glob("*.safetensors")):
        raise ConfigError("has no text_config or no *.safetensors file", where=str(source), fix=fix)
    return config


def extend_tokenizer(source: Path, destination: Path) -> int:
    """Write the tokenizer of `source` with the coordinates into `destination`; returns the id of coordinate 0.

    The tokens are not `special`: decoding with `skip_special_tokens` must keep them, they are part of the answer. Not
    `normalized`, not `single_word`, without stripping: the exact text is always found, next to anything, and never
    split; and the text around it is tokenised as if it stood alone.
    """
    tokenizer = AutoTokenizer.from_pretrained(source)
    known = tokenizer.get_vocab()  # the whole one, put together at each call
    present = [token for token in TOKENS if token in known]
    if present:
        raise ConfigError(
            f"already has {len(present)} of the coordinate tokens, the first is {present[0]}",
            where=str(source),
            fix="use this checkpoint as it is",
        )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in TOKENS])
    ids = tokenizer.convert_tokens_to_ids(list(TOKENS))
    if ids != list(range(ids[0], ids[0] + NUM_BINS)):
        raise ConfigError("its tokenizer gives added tokens no consecutive ids", where=str(source))
    tokenizer.save_pretrained(destination)
    return ids[0]


def rewrite_shard(source: Path, destination: Path, first_id: int) -> dict[str, int]:
    """Copy one safetensors file, enlarging table and head; returns the rows of each (name -> W)."""
    with safe_open(source, framework="pt") as shard:
        names = [name for name in shard.keys() if name.endswith(EMBEDDING_SUFFIX) or name == HEAD_NAME]
        if names:
            tensors = {name: shard.get_tensor(name) for name in shard.keys()}
            metadata = shard.metadata()
    if not names:
        shutil.copyfile(source, destination)
        return {}
    for name in names:
        tensors[name] = enlarge(tensors[name], first_id)
    save_file(tensors, destination, metadata=metadata)
    return {name: tensors[name].shape[0] for name in names}


def rewrite_weights(source: Path, destination: Path, first_id: int, tell: Callable[[str], None]) -> int:
    """Rewrite all safetensors files and their index; returns W."""
    rows: dict[str, int] = {}
    shards = sorted(source.glob("*.safetensors"))
    for number, shard in enumerate(shards, 1):
        tell(f"weights: file {number} of {len(shards)}, {printable(shard.name)}")
        rows.update(rewrite_shard(shard, destination / shard.name, first_id))
    if not any(name.endswith(EMBEDDING_SUFFIX) for name in rows):
        raise ConfigError(f"no tensor is called *{EMBEDDING_SUFFIX}", where=str(source))
    if len(set(rows.values())) != 1:
        raise ConfigError(f"table and head differ in rows: {rows}", where=str(source))
    for index in source.glob("*.safetensors.index.json"):
        contents = json.loads(index.read_text(encoding="utf-8"))
        contents.setdefault("metadata", {})["total_size"] = total_size(destination)
        (destination / index.name).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    return next(iter(rows.values()))


def total_size(folder: Path) -> int:
    """Bytes of all tensors in the safetensors files of `folder`."""
    size = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        size += path.stat().st_size - 8 - header
    return size


def write_config(config: dict[str, object], destination: Path, num_rows: int) -> None:
    """Write config.json with the new number of rows wherever the old one stood."""
    config["text_config"]["vocab_size"] = num_rows
    if "vocab_size" in config:
        config["vocab_size"] = num_rows
    (destination / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@contextmanager
def building_folder(destination: Path) -> Iterator[Path]:
    """An empty folder beside `destination`, ours alone until the block ends; gone then, unless it was renamed.

    Raises ConfigError if another process that lives is building there.
    """
    building = destination.with_name(f".{destination.name}.partial")
    building.mkdir(parents=True, exist_ok=True)
    handle = os.open(building, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel releases it when its process is killed
        except BlockingIOError:
            fix = "wait for it to end, or give another folder"
            raise ConfigError("another process is making this folder", where=str(destination), fix=fix) from None
        try:
            for left in building.iterdir():
                left.unlink()
            yield building
        finally:
            shutil.rmtree(building, ignore_errors=True)
    finally:
        os.close(handle)


Tell = Callable[[str], None]


def add_coord_tokens(source: Path, destination: Path, tell: Tell = lambda line: None) -> int:
    """`_add` with the errors of the libraries and of the disk as ours; returns the id of `<|coord_0|>`."""
    try:
        return _add(source, destination, tell)
    except Stage2Error:
        raise
    except Exception as error:  # tokenizers and safetensors have no classes of their own for what they cannot read
        raise EnvironmentFault(
            f"the coordinate tokens cannot be added: {error}",
            where=str(source),
            fix=f"take the whole folder of a Qwen3-VL checkpoint, and see that {destination} can be written",
        ) from error


def _add(source: Path, destination: Path, tell: Tell) -> int:
    """Copy the Qwen3-VL folder `source` to `destination` with the coordinate tokens; returns the id of `<|coord_0|>`.

    Args:
        tell: is given a line at each stage of the work, which takes minutes for a large model.

    Raises ConfigError if the destination exists, or the source is no Qwen3-VL folder or has the tokens already, and
    EnvironmentFault if parts of the source contradict each other.
    """
    source, destination = Path(source), Path(destination)
    if destination.exists():
        raise ConfigError("exists already", where=str(destination), fix="give a folder that does not exist yet")
    config = read_config(source)
    check_folder(source, whole=False)
    with building_folder(destination) as building:
        for path in source.iterdir():
            if path.is_file() and path.suffix != ".safetensors":
                shutil.copyfile(path, building / path.name)
        tell("tokenizer: adding the 1,000 coordinate tokens")
        first_id = extend_tokenizer(source, building)
        num_rows = rewrite_weights(source, building, first_id, tell)
        write_config(config, building, num_rows)
        building.replace(destination)
    return first_id

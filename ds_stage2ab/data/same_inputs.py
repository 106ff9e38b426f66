"""That all ranks read the same config, code, checkpoint and records: compared before the first step.

Ranks of two machines may have two copies of a file. Each draws its samples by their numbers, without a word to the
others, so with other records or another config the run would be a mixture that nobody has asked for. A digest is
gathered from every rank; only where they differ is the difference looked for.
"""

import json
import os
import socket
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import ds_stage2ab
from ds_stage2ab.config.load import LoadedConfig
from ds_stage2ab.config.resolved import flat
from ds_stage2ab.config.rules import REPLAY_RUN
from ds_stage2ab.errors import ConfigError, DataError, EnvironmentFault, Stage2Error
from ds_stage2ab.runtime.ranks import World
from ds_stage2ab.runtime.versions import library_versions

CHECKPOINT_FILES = ("*.json", "*.txt", "*.jinja")
"""Read by every rank; of the weights, which DeepSpeed takes from rank 0, the sizes are enough."""
DIGEST_BYTES = 16
MAX_KEYS = 4
"""Differences that a message shows before it counts the rest."""
MAX_TEXT = 80
"""Characters of a value in a message."""
ABSENT = "not there"


def assert_same_start(loaded: LoadedConfig, checkpoint: Path, world: World) -> None:
    """Compare what can be known before anything is loaded; collective.

    Raises:
        ConfigError: the ranks have different configs.
        EnvironmentFault: they run different code, or have different checkpoints or recordings.
    """
    if world.size == 1:
        return
    config = {key: json.dumps(value, ensure_ascii=False) for key, value in flat(loaded.resolved)}
    config["logging.name"] = loaded.name
    shared = "on a path that all machines share, or copy"
    _compare(config, world, ConfigError, "configs", f"keep the config {shared} it to each machine")
    _compare(_code(), world, EnvironmentFault, "code", f"install the package {shared} its folder to each machine")
    files = _checkpoint(checkpoint)
    _compare(files, world, EnvironmentFault, f"files in {checkpoint}", f"keep model.path {shared} the whole folder")
    run = loaded.config.rollout_matching.replay.run
    if run is not None:
        fix = f"keep {REPLAY_RUN} {shared} the whole folder"
        _compare(_recording(run), world, EnvironmentFault, f"recordings in {run}", fix)


def assert_same_records(paths: Iterable[Path], world: World) -> None:
    """Compare files of records, which every rank has read; collective.

    Raises:
        DataError: the ranks have different records.
    """
    for path in paths:
        if world.size > 1 and len(set(world.gather(_content(path)))) > 1:
            raise _other_records(path, world)


def _compare(own: dict[str, str], world: World, fault: type[Stage2Error], what: str, fix: str) -> None:
    """Raise one error on every rank if the values of a key differ."""
    if len(set(world.gather(_digest(json.dumps(own, sort_keys=True).encode())))) == 1:
        return
    everybody = world.gather((socket.gethostname(), own))
    hosts = [host for host, _ in everybody]
    found = []
    for key in dict.fromkeys(key for _, facts in everybody for key in facts):
        values = [facts.get(key, ABSENT) for _, facts in everybody]
        if len(set(values)) > 1:
            found.append((key, f"{key} is {_by_rank(values, hosts)}"))
    rest = len(found) - MAX_KEYS
    told = "; ".join(text for _, text in found[:MAX_KEYS]) + (f"; and {rest} more differ" if rest > 0 else "")
    raise fault(f"the ranks have different {what}: {told}", where=found[0][0], fix=fix)


def _other_records(path: Path, world: World) -> DataError:
    """Of the first line that differs; collective."""
    lines = path.read_bytes().split(b"\n")
    number = _first_difference(lines, world)
    own = repr(lines[number].decode(errors="replace")) if number < len(lines) else ABSENT
    everybody = world.gather((socket.gethostname(), own))
    values = _by_rank([text for _, text in everybody], [host for host, _ in everybody])
    return DataError(
        f"the ranks have different records: line {number + 1} is {values}",
        where=f"{path}:{number + 1}",
        fix="keep the file on a path that all machines share, or copy it to each machine",
    )


def _first_difference(lines: list[bytes], world: World) -> int:
    """Index of the first line that some rank has otherwise or not at all; a binary search, one gather each time."""
    digest, so_far = blake2b(digest_size=DIGEST_BYTES), []
    for line in lines:
        digest.update(line + b"\n")
        so_far.append(digest.digest())
    low, high = 0, min(world.gather(len(lines)))
    while low < high:
        middle = (low + high) // 2
        is_same = len(set(world.gather(so_far[middle]))) == 1
        low, high = (middle + 1, high) if is_same else (low, middle)
    return low


def _by_rank(values: list[str], hosts: list[str]) -> str:
    """`42 on rank 0 and 7 more, 43 on rank 8 of node-b`: each value once, cut to where they differ."""
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(rank)
    start = max(0, _common(list(ranks)) - MAX_TEXT // 2)
    told = []
    for value, (first, *others) in ranks.items():
        text = value if len(value) <= MAX_TEXT else f"{'...' if start else ''}{value[start : start + MAX_TEXT]}..."
        place = f"rank {first}" + (f" of {hosts[first]}" if len(set(hosts)) > 1 else "")
        told.append(f"{text} on {place}" + (f" and {len(others)} more" if others else ""))
    return ", ".join(told)


def _common(values: list[str]) -> int:
    """Characters that all begin with."""
    first, last = min(values), max(values)  # in the order of texts: what these two share, all do
    different = (place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return next(different, min(len(first), len(last)))


def _code() -> dict[str, str]:
    """File of this package -> its digest; library -> its version."""
    (folder,) = ds_stage2ab.__path__
    files = {f"ds_stage2ab/{file.relative_to(folder)}": file for file in sorted(Path(folder).rglob("*.py"))}
    return library_versions() | {name: _content(file) for name, file in files.items()}


def _checkpoint(folder: Path) -> dict[str, str]:
    """File -> its digest, or of weights `4,967,215 bytes`; nothing for a folder that is not there."""
    if not os.path.isdir(folder):  # a name that no folder can have, too
        return {}
    small = {file.name: _content(file) for kind in CHECKPOINT_FILES for file in folder.glob(kind)}
    return small | _sizes(folder, "*.safetensors")


def _recording(run: Path) -> dict[str, str]:
    """File of rollouts -> its size: another recording answers otherwise, so its lines are of other lengths."""
    return {} if not os.path.isdir(run) else _sizes(run, "**/rank-*.jsonl")


def _sizes(folder: Path, kind: str) -> dict[str, str]:
    return {str(file.relative_to(folder)): f"{file.stat().st_size:,} bytes" for file in folder.glob(kind)}


def _content(file: Path) -> str:
    """Its digest, or why it cannot be read, which is for those to tell who need it."""
    try:
        return _digest(file.read_bytes())
    except OSError as error:
        return f"not readable ({error.strerror})"


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=DIGEST_BYTES).hexdigest()

"""A checkpoint folder as plain data: its small files, and of its weights the headers. No torch, and no load."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ds_stage2ab.model_folder.images import processor_settings

CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
GENERATION = "generation_config.json"
TEMPLATE, OLDER_TEMPLATE = "chat_template.jinja", "chat_template.json"
WEIGHT_SETS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""What transformers looks for, in its order: it takes the first that is there."""
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
QUANTISATION = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
CHANGING = (*ADAPTERS, *QUANTISATION)
"""Side files that change how the weights beside them are loaded; never exported."""
WHOLE = "take the whole folder of a stage-1 checkpoint, from one source"
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a folder."""

    file: str
    # name inside the folder; empty: the folder itself
    why: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """What the small files and the headers of the weights say. Whatever is not there is empty."""

    path: Path
    config: dict[str, Any]
    added_tokens: dict[str, int]
    # text -> id, of the tokenizer
    last_token: int
    # highest id of the tokenizer; -1: not known
    processors: tuple[dict[str, Any], dict[str, Any]]
    # the image processor's section of processor_config.json, and preprocessor_config.json
    image_settings: dict[str, Any]
    # of the one that is read, its library's defaults filled in
    older_template: str
    # of chat_template.json, the older form, where the tokenizer has none
    has_template: bool
    stop_ids: tuple[int, ...]
    # of the generation config
    shapes: dict[str, list[int]]
    # of the tensors in safetensors files, by name
    indexed: frozenset[str]
    # files that the index of the safetensors files names
    unreadable: tuple[Problem, ...] = field(repr=False)

    @property
    def is_tied(self) -> bool:
        """Whether the head is the embedding table; some folders say so in `text_config` alone."""
        sections = (self.config, self.section("text_config"))
        said = (bool(one["tie_word_embeddings"]) for one in sections if "tie_word_embeddings" in one)
        return next(said, False)

    @property
    def adapters(self) -> list[str]:
        """Names of peft that from_pretrained looks for, whatever bears them."""
        return [name for name in ADAPTERS if os.path.lexists(self.path / name)]

    def section(self, name: str) -> dict[str, Any]:
        """A mapping in `config.json`; empty if there is none."""
        return _mapping(self.config, name)

    def has(self, name: str) -> bool:
        return os.path.isfile(self.path / name)


def read_folder(path: Path) -> ModelFolder:
    """Read what is there of a folder; nothing is judged but that it can be read."""
    problems: list[Problem] = []

    def values(name: str) -> dict[str, Any]:
        return _json_object(path / name, problems)

    tokenizer, template = values(TOKENIZER), values(OLDER_TEMPLATE).get("chat_template")
    own = os.path.isfile(path / TEMPLATE) or "chat_template" in values(TOKENIZER_CONFIG)
    stops = values(GENERATION).get("eos_token_id")
    processors = _mapping(values("processor_config.json"), "image_processor"), values("preprocessor_config.json")
    return ModelFolder(
        path=path,
        config=values(CONFIG),
        added_tokens=_added_tokens(tokenizer),
        last_token=max(_token_ids(tokenizer), default=-1),
        processors=processors,
        image_settings=processor_settings(*processors),
        older_template=template if isinstance(template, str) and not own else "",
        has_template=own or isinstance(template, str),
        stop_ids=tuple(stop for stop in (stops if isinstance(stops, list) else [stops]) if isinstance(stop, int)),
        shapes=_shapes(path, problems),
        indexed=frozenset(map(str, _mapping(values("model.safetensors.index.json"), "weight_map").values())),
        unreadable=tuple(dict.fromkeys(problems)),
    )


def _json_object(file: Path, problems: list[Problem]) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        problems.append(Problem(file.name, f"cannot be read: {error}", f"fetch it again; {WHOLE}"))
        return {}
    if isinstance(values, dict):
        return values
    problems.append(Problem(file.name, "is no JSON object", f"fetch it again; {WHOLE}"))
    return {}


def _mapping(values: dict[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def _added_tokens(tokenizer: dict[str, Any]) -> dict[str, int]:
    entries = tokenizer.get("added_tokens")
    if not isinstance(entries, list):
        return {}
    found = [(one.get("content"), one.get("id")) for one in entries if isinstance(one, dict)]
    return {text: token for text, token in found if isinstance(text, str) and isinstance(token, int)}


def _token_ids(tokenizer: dict[str, Any]) -> Iterator[int]:
    yield from _added_tokens(tokenizer).values()
    vocab = _mapping(tokenizer, "model").get("vocab")
    if isinstance(vocab, dict):
        yield from (token for token in vocab.values() if isinstance(token, int))
    elif isinstance(vocab, list):
        yield len(vocab) - 1


def _shapes(path: Path, problems: list[Problem]) -> dict[str, list[int]]:
    shapes = {}
    for file in sorted(path.glob("*.safetensors")):
        if file.name in ADAPTERS:  # refused, whatever is in them
            continue
        header = _header(file)
        if header is None:
            why = "is no safetensors file, or is cut short"
            pointer = "; if it is a pointer of Git LFS: git lfs pull"
            problems.append(Problem(file.name, why, f"fetch it again, whole{pointer}"))
        else:
            shapes |= {name: entry["shape"] for name, entry in header.items()}
    return shapes


def _header(file: Path) -> dict[str, Any] | None:
    """Tensor name -> its entry; None if the file is damaged (https://github.com/huggingface/safetensors).

    The reader of that library loads numpy, which `plan` does without.
    """
    try:
        with file.open("rb") as content:
            (length,) = struct.unpack("<Q", content.read(8))
            if length > MAX_HEADER_BYTES:
                return None
            header = json.loads(content.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        return header if file.stat().st_size == 8 + length + end else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error):
        return None

"""A checkpoint in this process, or a server: how samples are made for it, and how it answers them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from deepspeed.accelerator import get_accelerator
from PIL import Image

from ds_stage2ab.carriers import Record, Rollout, Sample
from ds_stage2ab.codec.text import Codec, get_codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.config.load import load_config
from ds_stage2ab.config.sections import CLASSES, DecodingSection, ModelSection
from ds_stage2ab.config.servers import api_key
from ds_stage2ab.data.asked import with_names
from ds_stage2ab.data.encode import Encoder
from ds_stage2ab.detector_file import FILE, DetectorFile, of_config, read_detector_file
from ds_stage2ab.engine.build import (
    embedding_holds_coordinates,
    load_checkpoint,
    load_processors,
    position_index,
    quieten,
)
from ds_stage2ab.errors import ConfigError, DataError
from ds_stage2ab.evaluation.detected import Detected, detected
from ds_stage2ab.model_folder.checks import check_folder, warnings_of
from ds_stage2ab.model_folder.places import weights_folder
from ds_stage2ab.model_folder.read import read_folder
from ds_stage2ab.plan import rollout_timeout_s
from ds_stage2ab.predict.served import Served, folder_of, server_at
from ds_stage2ab.rollout.base import Sampling, evaluation_sampling
from ds_stage2ab.rollout.hf import HfBackend

ADDRESSES = ("http://", "https://")
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}
START_ID = "predict"
GREEDY = DecodingSection(temperature=0.0, top_p=1.0, top_k=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What a detector answers by."""

    encoder: Encoder
    vocabulary: Vocabulary
    codec: Codec
    sampling: Sampling
    position_limit: int | None
    # tokens of prompt and answer together; None: the server says it
    generate: Callable[[list[Sample]], Iterable[Rollout | DataError]]
    # one rollout for each sample, in order
    warnings: tuple[str, ...]

    def encode(self, record: Record, draw: int, content: bytes, pixels: Image.Image) -> Sample:
        """Raises: DataError: the image processor refuses the image, or it leaves no room for an answer."""
        sample = self.encoder.encode_loaded(record, draw, content, pixels)
        length = len(sample.prompt_ids) + self.sampling.max_new_tokens
        if self.position_limit is not None and length > self.position_limit:
            why = f"image {record.image} and the longest answer have {length} tokens, the model takes"
            raise DataError(f"{why} {self.position_limit}", where=record.where, fix="make the image smaller")
        return sample

    def answer(self, samples: list[Sample]) -> Iterable[Rollout | DataError]:
        """One rollout for each, or why it is refused."""
        return self.generate(samples) if samples else []

    def read(self, rollout: Rollout) -> Detected:
        """The objects of an answer."""
        return detected(rollout, self.vocabulary, self.codec)


def opened(
    checkpoint: str,
    *,
    prompt: str | None,
    classes: Sequence[str],
    config: Path | None,
    batch: int,
    model: Path | None,
    api_key_env: str | None,
) -> Opened:
    """Load the checkpoint, or look at the server; `Detector` has the arguments."""
    quieten()
    if not checkpoint.startswith(ADDRESSES):
        folder = weights_folder(Path(checkpoint))
        return _loaded(folder, _asked(folder, prompt, classes, config), batch)
    server = server_at(checkpoint, batch, api_key(api_key_env))
    folder = folder_of(server) if model is None else weights_folder(model)
    return _served(server, folder, _asked(folder, prompt, classes, config), batch)


def _loaded(path: Path, asked: DetectorFile, batch: int) -> Opened:
    section = ModelSection(
        path=path, attn_implementation="sdpa", precision=_precision(path), freeze=(), gradient_checkpointing=False
    )
    source = load_checkpoint(section, min_pixels=asked.min_pixels, max_pixels=asked.max_pixels)
    parts = _parts(asked, source.tokenizer, source.image_processor)
    embedding_holds_coordinates(source, parts["vocabulary"])
    model = source.model.to(get_accelerator().current_device_name())
    backend = HfBackend(
        lambda: nullcontext(model),
        parts["vocabulary"],
        position_index(source.model),
        decode_batch_size=batch,
        start_id=START_ID,
        seed=0,
        codec=parts["codec"],
    )

    def generate(samples: list[Sample]) -> list[Rollout]:
        with backend.current_weights(0):
            return backend.generate(samples, parts["sampling"], finished_steps=0)

    limit = source.model.config.text_config.max_position_embeddings
    warnings = (*source.warnings, *parts["encoder"].warnings)
    return Opened(**parts, position_limit=limit, generate=generate, warnings=warnings)


def _served(server: Any, path: Path, asked: DetectorFile, batch: int) -> Opened:
    """The folder gives tokenizer and image processor, and needs no weights."""
    folder = check_folder(path, whole=False)
    processors = load_processors(folder, min_pixels=asked.min_pixels, max_pixels=asked.max_pixels)
    parts = _parts(asked, *processors)
    served = Served(
        server,
        parts["vocabulary"],
        system_prompt=asked.system_prompt,
        batch=batch,
        read_s=rollout_timeout_s(None, asked.max_new_tokens),
    )
    generate = partial(served.generate, sampling=parts["sampling"])
    warnings = (*warnings_of(folder), *parts["encoder"].warnings)
    return Opened(**parts, position_limit=None, generate=generate, warnings=warnings)


def _parts(asked: DetectorFile, tokenizer: Any, image_processor: Any) -> dict[str, Any]:
    vocabulary, codec = Vocabulary.from_tokenizer(tokenizer), get_codec(asked.codec)
    prompts = {"system_prompt": asked.system_prompt, "user_prompt": asked.user_prompt}
    return {
        "vocabulary": vocabulary,
        "encoder": Encoder(tokenizer, image_processor, vocabulary, **prompts),
        "codec": codec,
        "sampling": evaluation_sampling(asked, GREEDY, codec),
    }


def _asked(folder: Path, prompt: str | None, classes: Sequence[str], config: Path | None) -> DetectorFile:
    """How the checkpoint is asked: by the config, or by its own file; a prompt replaces the user's.

    Raises:
        ConfigError: nothing says it, or names are given without a place for them, or the other way round.
    """
    found = read_detector_file(folder) if config is None else of_config(load_config(config).config)
    if found is None:
        of_run = folder.parents[2] / "config.json" if len(folder.parents) > 2 else Path()
        name = str(of_run) if of_run.is_file() else "FILE, the config of the run that made it"
        why = f"has no {FILE}: prompts, answer format and limits are not known"
        raise ConfigError(why, where=str(folder), fix=f"give --config {name}")
    words = found.user_prompt if prompt is None else prompt
    if (CLASSES in words) != bool(classes):
        why = f"the prompt {words!r} has {'a' if CLASSES in words else 'no'} place for names"
        fix = "name them by --classes" if CLASSES in words else f"write {CLASSES} in --prompt, or leave --classes out"
        raise ConfigError(why, where="--classes", fix=fix)
    return replace(found, user_prompt=with_names(words, classes))


def _precision(folder: Path) -> str:
    """That of the stored weights."""
    config = read_folder(folder).config
    stored = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    return PRECISIONS[stored] if stored in PRECISIONS else PRECISIONS["bfloat16"]

"""A plain Hugging Face folder of the model that trains, which `from_pretrained` and vLLM load."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from torch import nn
from transformers import Qwen2VLImageProcessorPil

from ds_stage2ab.detector_file import DetectorFile, write_detector_file
from ds_stage2ab.engine.shards import ShardWriter
from ds_stage2ab.engine.tuner import merged_tensors
from ds_stage2ab.engine.whole_model import WholeModel
from ds_stage2ab.model_folder.read import CHANGING

WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".gguf", ".pt", ".pth")
"""Weight files of the source folder: an export writes its own."""
UNWRITABLE = (OSError, RuntimeError, MemoryError, SafetensorError, json.JSONDecodeError)
"""What torch and safetensors raise when disk or memory is full, and json of a source that was damaged meanwhile."""
GENERATION_FILE = "generation_config.json"
KEPT_OF_GENERATION = re.compile(r".*_token_id|max_length|max_new_tokens|_from_model_config|transformers_version")
"""Everything else in that file changes how an answer is sampled or searched."""


def export(
    whole_model: WholeModel,
    source: Path,
    image_processor: Qwen2VLImageProcessorPil,
    destination: Path,
    detector: DetectorFile | None = None,
) -> None:
    """Write a Hugging Face folder that `from_pretrained` and vLLM load; `destination` must not exist yet.

    Collective; rank 0 writes. Adapters are merged into copies of the weights. One gathered tensor at a time is in
    memory, and on rank 0 one file of them.

    Args:
        detector: how the checkpoint is asked; None: as the source's own file says, if it has one.

    Raises:
        OSError, SafetensorError: a file cannot be written.
        RuntimeError, MemoryError: there is no memory for a tensor. Every error is raised after the last gather, so that
            no rank is left waiting.
    """
    writer, fault = None, None
    if whole_model.world.rank == 0:
        try:
            writer = _begin(whole_model.layout, source, image_processor, destination, detector)
        except UNWRITABLE as error:
            fault = error
    for tensor in merged_tensors(whole_model.layout):
        try:
            with whole_model.part(tensor.needs, "cpu", only_first=True):
                if writer is not None:
                    writer.add(tensor.name, tensor.make())
        except UNWRITABLE as error:
            # Free the pending tensors, and those that the traceback holds, for the gathers still to come.
            fault, writer = fault or error.with_traceback(None), None
    if fault is not None:
        raise fault
    if writer is not None:
        writer.close()


def _begin(
    model: nn.Module,
    source: Path,
    image_processor: Qwen2VLImageProcessorPil,
    destination: Path,
    detector: DetectorFile | None,
) -> ShardWriter:
    """Everything but the weights."""
    destination.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(WEIGHT_SUFFIXES) and file.name not in CHANGING:
            shutil.copyfile(file, destination / file.name)
    size = dict(image_processor.size)
    _export_image_size(size, destination)
    if detector is not None:
        limits = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
        write_detector_file(destination, replace(detector, **limits))
    _export_greedy(destination / GENERATION_FILE)
    model.config.save_pretrained(destination)
    return ShardWriter(destination)


def _export_image_size(size: dict[str, int], folder: Path) -> None:
    """Make the folder resize as training did: `data.min_pixels` and `data.max_pixels` are not in the source's files.

    Args:
        size: areas in pixels, as transformers names them: "shortest_edge", "longest_edge".
        folder: unchanged, byte by byte, if it already resizes so.
    """
    if dict(Qwen2VLImageProcessorPil.from_pretrained(folder).size) == size:
        return
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        # transformers reads the settings of a processor_config.json first, where it holds any
        settings = content if name.startswith("pre") else content.get("image_processor")
        if settings:
            for older_name in ("min_pixels", "max_pixels"):  # where they stand, they override the size
                settings.pop(older_name, None)
            settings["size"] = size
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _export_greedy(path: Path) -> None:
    """Leave only the ids and lengths in the source's file, if there is one.

    A release samples by it (Qwen3-VL at temperature 0.7), so that who calls plain `generate` would get sampled boxes.
    """
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        kept = {key: value for key, value in content.items() if KEPT_OF_GENERATION.fullmatch(key)}
        path.write_text(json.dumps({**kept, "do_sample": False}, indent=2) + "\n", encoding="utf-8")

"""Checkpoints: DeepSpeed's state and a plain Hugging Face folder, complete or not there at all.

A checkpoint is written under a temporary name, renamed when it is whole, and only then does `latest` move.

    checkpoints/step-000060/deepspeed/...    weights, optimizer state, counters, per rank
    checkpoints/step-000060/hf/              safetensors (adapters merged), config, tokenizer, image processor
    checkpoints/step-000060/adapter/         the adapters alone, if there are any, as peft stores them
    checkpoints/step-000060/state.json       step, world size
    checkpoints/latest                       name of the newest complete one
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import deepspeed
from safetensors import SafetensorError
from torch import nn
from transformers import Qwen2VLImageProcessorPil

from ds_stage2ab.engine.shards import ShardWriter
from ds_stage2ab.engine.tuner import adapters_of, merged_tensors, save_adapter
from ds_stage2ab.engine.whole_model import WholeModel
from ds_stage2ab.errors import EnvironmentFault, LocalFault
from ds_stage2ab.runtime.ranks import World

WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".gguf", ".pt", ".pth")
"""Weight files of the source folder: an export writes its own."""
UNWRITABLE = (OSError, RuntimeError, MemoryError, SafetensorError)
"""What torch and safetensors raise when disk or memory is full."""


class Checkpoints:
    """Writes the checkpoints of a run.

    Args:
        folder: `<run>/checkpoints`.
        source: the Hugging Face folder that the run started from; its tokenizer and processor files are copied.
        image_processor: that of the run; its size limits are exported where they differ from the source's.
        engine: the DeepSpeed engine.
        whole_model: gathers the full parameters of the model inside the engine.
        world: the learner ranks.
        keep_last: how many checkpoints stay on disk.
    """

    def __init__(
        self,
        folder: Path,
        source: Path,
        image_processor: Qwen2VLImageProcessorPil,
        engine: deepspeed.DeepSpeedEngine,
        whole_model: WholeModel,
        world: World,
        *,
        keep_last: int,
    ) -> None:
        self.folder = folder
        self.source = source
        self.image_processor = image_processor
        self.engine = engine
        self.whole_model = whole_model
        self.world = world
        self.keep_last = keep_last
        self.newest = 0  # finished steps of the newest checkpoint

    def save(self, finished_steps: int) -> Path:
        """Write the checkpoint after `finished_steps` steps; every rank calls it. Returns its folder."""
        name = f"step-{finished_steps:06d}"
        partial, final = self.folder / f".{name}.partial", self.folder / name
        with self.world.raise_together("making the checkpoint's folder"), _explained(self.folder):
            if self.world.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
        self.world.set_status("saving the state of the engine")
        # Each rank writes its own part, then all wait inside DeepSpeed: a rank that fails cannot tell the others.
        with _explained(self.folder, fault=LocalFault, who=f"rank {self.world.rank}: "), self.world.collective():
            self.engine.save_checkpoint(str(partial), tag="deepspeed", save_latest=False)
        with self.world.raise_together("exporting the weights"), _explained(self.folder):
            export(self.whole_model, self.source, self.image_processor, partial / "hf")
        with self.world.raise_together("finishing the checkpoint"), _explained(self.folder):
            self._save_adapters(partial / "adapter")
            if self.world.rank == 0:
                state = {"finished_steps": finished_steps, "world_size": self.world.size}
                (partial / "state.json").write_text(json.dumps(state) + "\n")
                _sync(partial)
                partial.rename(final)
                _sync(self.folder)
                _replace_text(self.folder / "latest", name + "\n")
                self._prune()
        self.newest = finished_steps
        return final

    def _save_adapters(self, destination: Path) -> None:
        layout = self.whole_model.layout
        if not adapters_of(layout):
            return
        trained = [name for name, parameter in self.whole_model.model.named_parameters() if parameter.requires_grad]
        with self.whole_model.part(trained, "cpu", only_first=True):
            if self.world.rank == 0:
                save_adapter(layout, destination)

    def _prune(self) -> None:
        """Delete the oldest complete checkpoints beyond `keep_last`."""
        complete = sorted(self.folder.glob("step-*"), key=lambda folder: int(folder.name.removeprefix("step-")))
        for old in complete[: -self.keep_last]:
            shutil.rmtree(old)


def export(
    whole_model: WholeModel, source: Path, image_processor: Qwen2VLImageProcessorPil, destination: Path
) -> None:
    """Write a Hugging Face folder that `from_pretrained` and vLLM load; `destination` must not exist yet.

    Collective; rank 0 writes. Adapters are merged into copies of the weights. One gathered tensor at a time is in
    memory, and on rank 0 one file of them.

    Raises:
        OSError, SafetensorError: a file cannot be written.
        RuntimeError, MemoryError: there is no memory for a tensor. Every error is raised after the last gather, so that
            no rank is left waiting.
    """
    writer, fault = None, None
    if whole_model.world.rank == 0:
        try:
            writer = _begin(whole_model.layout, source, image_processor, destination)
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
    model: nn.Module, source: Path, image_processor: Qwen2VLImageProcessorPil, destination: Path
) -> ShardWriter:
    """Everything but the weights."""
    destination.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(WEIGHT_SUFFIXES):
            shutil.copyfile(file, destination / file.name)
    _export_image_size(dict(image_processor.size), destination)
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


@contextmanager
def _explained(folder: Path, *, fault: type[EnvironmentFault] = EnvironmentFault, who: str = "") -> Iterator[None]:
    try:
        yield
    except UNWRITABLE as error:
        raise fault(
            f"{who}a checkpoint cannot be written: {error}",
            where=str(folder),
            fix="free space, or make the folder writable; the checkpoints that `latest` names are untouched",
        ) from error


def _sync(folder: Path) -> None:
    """Flush a folder, and every file and folder below it, to the disk."""
    for path in (folder, *folder.rglob("*")):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _replace_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text)
    temporary.replace(path)

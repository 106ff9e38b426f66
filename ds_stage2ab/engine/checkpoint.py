"""Checkpoints: DeepSpeed's state and a plain Hugging Face folder, complete or not there at all.

A checkpoint is written under a temporary name, renamed when it is whole, and only then does `latest` move.

    checkpoints/step-000060/deepspeed/...    weights, optimizer state, counters, per rank
    checkpoints/step-000060/hf/              safetensors (adapters merged), config, tokenizer, image processor
    checkpoints/step-000060/adapter/         the adapters alone, if there are any, as peft stores them
    checkpoints/step-000060/state.json       step, world size
    checkpoints/latest                       name of the newest complete one
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import deepspeed
from safetensors import SafetensorError
from torch import nn
from transformers import Qwen2VLImageProcessorPil

from ds_stage2ab.engine.run_folder import LATEST, replace_file, sync
from ds_stage2ab.engine.shards import ShardWriter
from ds_stage2ab.engine.tuner import adapters_of, merged_tensors, save_adapter
from ds_stage2ab.engine.whole_model import WholeModel
from ds_stage2ab.errors import EnvironmentFault, LocalFault
from ds_stage2ab.model_folder.read import CHANGING
from ds_stage2ab.runtime.ranks import World

WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".gguf", ".pt", ".pth")
"""Weight files of the source folder: an export writes its own."""
UNWRITABLE = (OSError, RuntimeError, MemoryError, SafetensorError)
"""What torch and safetensors raise when disk or memory is full."""
CUT_OFF = ("unexpected pos", "PytorchStreamWriter failed writing", "iostream error")
"""In the texts of torch's writer when the system took only a part of what it wrote; the reason is lost."""
DELETED = ".deleted"
GENERATION_FILE = "generation_config.json"
KEPT_OF_GENERATION = re.compile(r".*_token_id|max_length|max_new_tokens|_from_model_config|transformers_version")
"""Everything else in that file changes how an answer is sampled or searched."""


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
        warn: takes what went wrong and does not end the run.
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
        warn: Callable[[str], None],
    ) -> None:
        self.folder = folder
        self.source = source
        self.image_processor = image_processor
        self.engine = engine
        self.whole_model = whole_model
        self.world = world
        self.keep_last = keep_last
        self.warn = warn
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
                for path in (*partial.rglob("*"), partial):
                    sync(path)
                partial.rename(final)
                sync(self.folder)
                replace_file(self.folder / LATEST, name + "\n")
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
        """Delete the oldest complete checkpoints beyond `keep_last`; a name that is not ours is left alone.

        Renamed first: one that is deleted in part must not look complete.
        """
        steps = sorted(step for path in self.folder.iterdir() if (step := _step_of(path)) is not None)
        for name in (f"step-{step:06d}" for step in steps[: -self.keep_last]):
            try:
                (self.folder / name).rename(self.folder / f".{name}{DELETED}")
            except OSError as error:
                self._warn_of_old(self.folder / name, error)
        for hidden in self.folder.glob(f".step-*{DELETED}"):
            try:
                shutil.rmtree(hidden)
            except OSError as error:
                self._warn_of_old(hidden, error)

    def _warn_of_old(self, folder: Path, error: OSError) -> None:
        why = f"the old checkpoint {folder} cannot be deleted: {error.strerror}"
        self.warn(f"{why}; the run goes on, delete it yourself")


def _step_of(path: Path) -> int | None:
    """The finished steps of a checkpoint's folder by its name; None if it is none that `save` made."""
    found = re.fullmatch(r"step-([0-9]{6,})", path.name)
    is_ours = found and path.name == f"step-{int(found[1]):06d}" and path.is_dir() and not path.is_symlink()
    return int(found[1]) if is_ours else None


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
        if file.is_file() and not file.name.endswith(WEIGHT_SUFFIXES) and file.name not in CHANGING:
            shutil.copyfile(file, destination / file.name)
    _export_image_size(dict(image_processor.size), destination)
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


@contextmanager
def _explained(folder: Path, *, fault: type[EnvironmentFault] = EnvironmentFault, who: str = "") -> Iterator[None]:
    try:
        yield
    except UNWRITABLE as error:
        raise fault(
            f"{who}a checkpoint cannot be written: {_reason(error, folder)}",
            where=str(folder),
            fix="free space, or make the folder writable; the checkpoints that `latest` names are untouched",
        ) from error


def _reason(error: Exception, folder: Path) -> str:
    if not any(sign in str(error) for sign in CUT_OFF):
        return str(error)
    free = shutil.disk_usage(folder).free
    return (
        "a file was cut off while it was written: no space left on the device, or a quota or a limit of file sizes is"
        f" reached ({free / 2**30:.2f} GiB are free; torch says: {str(error).splitlines()[0]})"
    )

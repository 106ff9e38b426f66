"""Checkpoints: what a run goes on from, and a plain Hugging Face folder; complete or not there at all.

A checkpoint is written under a temporary name, renamed when it is whole, and only then does `latest` move.

    checkpoints/step-000060/hf/              safetensors (adapters merged), config, tokenizer, image processor
    checkpoints/step-000060/adapter/         the adapters alone, if there are any, as peft stores them
    checkpoints/step-000060/training/        fp32 weights and optimizer state of what trains, as full tensors
    checkpoints/step-000060/random.safetensors   the random state of each rank
    checkpoints/step-000060/state.json       steps, counters, config, data and ranks: `resume.Saved`
    checkpoints/step-000060/manifest.json    every file with its size and digest
    checkpoints/latest                       name of the newest complete one
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import deepspeed
import torch
from safetensors.torch import save_file
from transformers import Qwen2VLImageProcessorPil

from ds_stage2ab.engine.export import UNWRITABLE, export
from ds_stage2ab.engine.manifest import MANIFEST, manifest_text
from ds_stage2ab.engine.resume import ADAPTER, EXPORT, FORMAT, RANDOM, STATE, TRAINING, saved_steps, step_name
from ds_stage2ab.engine.run_folder import LATEST, replace_file, sync
from ds_stage2ab.engine.shards import ShardWriter
from ds_stage2ab.engine.training_state import num_updates, random_state, state_tensors
from ds_stage2ab.engine.tuner import adapters_of, save_adapter
from ds_stage2ab.engine.whole_model import WholeModel
from ds_stage2ab.errors import EnvironmentFault
from ds_stage2ab.runtime.ranks import World

DELETED = ".deleted"


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
        newest: int = 0,
    ) -> None:
        self.folder = folder
        self.source = source
        self.image_processor = image_processor
        self.engine = engine
        self.whole_model = whole_model
        self.world = world
        self.keep_last = keep_last
        self.warn = warn
        self.newest = newest  # finished steps of the newest checkpoint

    def save(self, finished_steps: int, progress: Mapping[str, Any] = MappingProxyType({})) -> Path:
        """Write the checkpoint after `finished_steps` steps; every rank calls it. Returns its folder.

        Args:
            progress: what `state.json` holds besides the step.
        """
        name = step_name(finished_steps)
        partial, final = self.folder / f".{name}.partial", self.folder / name
        with self.world.raise_together("making the checkpoint's folder"), _explained(self.folder):
            if self.world.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
        with self.world.raise_together("exporting the weights"), _explained(self.folder):
            export(self.whole_model, self.source, self.image_processor, partial / EXPORT)
        with self.world.raise_together("saving the state of the training"), _explained(self.folder):
            self._save_training(partial / TRAINING)
        random = self.world.gather(random_state(self.world.device))
        with self.world.raise_together("finishing the checkpoint"), _explained(self.folder):
            self._save_adapters(partial / ADAPTER)
            if self.world.rank == 0:
                tensors = {f"{rank}/{name}": tensor for rank, own in enumerate(random) for name, tensor in own.items()}
                save_file(tensors, partial / RANDOM)
                counts = {"finished_steps": finished_steps, "updates": num_updates(self.engine)}
                state = {"format": FORMAT, **counts, **progress}
                (partial / STATE).write_text(json.dumps(state, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
                self._publish(partial, final)
        self.newest = finished_steps
        return final

    def _publish(self, partial: Path, final: Path) -> None:
        (partial / MANIFEST).write_text(manifest_text(partial), encoding="utf-8")
        for path in (*partial.rglob("*"), partial):
            sync(path)
        partial.rename(final)
        sync(self.folder)
        replace_file(self.folder / LATEST, final.name + "\n")
        self._prune()

    def _save_training(self, destination: Path) -> None:
        """Collective; rank 0 writes. The first error is raised after the last gather, so that no rank is left waiting.

        One full tensor at a time is in memory, and on rank 0 one file of them.
        """
        writer, fault = None, None
        if self.world.rank == 0:
            try:
                destination.mkdir()
                writer = ShardWriter(destination)
            except UNWRITABLE as error:
                fault = error
        with torch.no_grad(), self.whole_model.gathering():
            for name, tensor in state_tensors(self.engine, self.whole_model.model):
                try:
                    if writer is not None:
                        writer.add(name, tensor)
                except UNWRITABLE as error:
                    fault, writer = error.with_traceback(None), None
        if fault is not None:
            raise fault
        if writer is not None:
            writer.close()

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
        for name in map(step_name, saved_steps(self.folder)[: -self.keep_last]):
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


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except UNWRITABLE as error:
        raise EnvironmentFault(
            f"a checkpoint cannot be written: {error}",
            where=str(folder),
            fix="free space, or make the folder writable; the checkpoints that `latest` names are untouched",
        ) from error

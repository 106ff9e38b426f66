"""Checkpoints: what a run goes on from, and a plain Hugging Face folder; complete or not there at all.

A checkpoint is written under a temporary name, renamed when it is whole, and only then does `latest` move
(`engine/publish.py`).

    checkpoints/step-000060/hf/              safetensors (adapters merged), config, tokenizer, image processor
    checkpoints/step-000060/adapter/         the adapters alone, if there are any, as peft stores them
    checkpoints/step-000060/training/        fp32 weights and optimizer state of what trains, as full tensors
    checkpoints/step-000060/random.safetensors   the random state of each rank
    checkpoints/step-000060/state.json       steps, counters, config, data and ranks: `resume.Saved`
    checkpoints/step-000060/manifest.json    every file with its size and digest
    checkpoints/latest                       name of the newest complete one
    checkpoints/best                         name of the best one, if checkpoint.keep_best says by what
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import deepspeed
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen2VLImageProcessorPil

from ds_stage2ab.config.sections import CheckpointSection
from ds_stage2ab.detector_file import DetectorFile
from ds_stage2ab.engine.export import UNWRITABLE, export
from ds_stage2ab.engine.publish import Publisher
from ds_stage2ab.engine.resume import ADAPTER, EXPORT, FORMAT, RANDOM, STATE, TRAINING, step_name
from ds_stage2ab.engine.shards import ShardWriter
from ds_stage2ab.engine.space import checkpoint_bytes, refuse_without_room
from ds_stage2ab.engine.training_state import num_updates, random_state, state_keys, state_tensors
from ds_stage2ab.engine.tuner import adapters_of, save_adapter
from ds_stage2ab.engine.whole_model import WholeModel
from ds_stage2ab.errors import EnvironmentFault, LocalFault
from ds_stage2ab.runtime.ranks import World

WARN = "warn"
"""Of checkpoint.on_error."""
UNKNOWN_SHARE = 0.05
"""Of a budget of time, kept for the last checkpoint before any has shown how long one takes."""
SLOWEST = 2.0
"""Times the longest checkpoint so far, kept for the last one."""


class Checkpoints:
    """Writes the checkpoints of a run.

    Args:
        folder: `<run>/checkpoints`.
        source: the Hugging Face folder that the run started from; its tokenizer and processor files are copied.
        image_processor: that of the run; its size limits are exported where they differ from the source's.
        engine: the DeepSpeed engine.
        whole_model: gathers the full parameters of the model inside the engine.
        world: the learner ranks.
        section: `checkpoint` of the config.
        warn: takes what went wrong and does not end the run.
        newest: finished steps of the checkpoint that the run goes on from.
        detector: how the run's checkpoints are asked; None: as the source's own file says.
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
        section: CheckpointSection,
        warn: Callable[[str], None],
        newest: int = 0,
        detector: DetectorFile | None = None,
    ) -> None:
        self.folder = folder
        self.source = source
        self.image_processor = image_processor
        self.engine = engine
        self.whole_model = whole_model
        self.world = world
        self.section = section
        self.warn = warn
        self.detector = detector
        self.newest = newest  # finished steps of the newest checkpoint, complete or about to be
        self._complete = newest
        self.publisher = Publisher(folder, section.keep_last)
        self._longest_s: float | None = None  # that a checkpoint has taken

    def save(
        self,
        finished_steps: int,
        progress: Mapping[str, Any] = MappingProxyType({}),
        random: Mapping[str, Tensor] | None = None,
        *,
        must: bool = False,
    ) -> None:
        """Write the checkpoint after `finished_steps` steps; every rank calls it. It is complete after `settle`.

        Args:
            progress: what `state.json` holds besides the step.
            random: this rank's random state after that step; None: as it is now.
            must: whether a failure ends the run whatever `checkpoint.on_error` says.

        Raises:
            EnvironmentFault: on every rank, it cannot be written.
        """
        begun = time.monotonic()
        self.settle(must=must)  # its failure is not this one's
        self._tolerated(lambda: self._save(finished_steps, progress, random), must=must)
        self._longest_s = max(time.monotonic() - begun, self._longest_s or 0.0)

    def settle(self, *, must: bool = False) -> None:
        """Wait until the newest checkpoint is complete; collective.

        Raises:
            EnvironmentFault: on every rank, it cannot be completed.
        """
        self._tolerated(self._settle, must=must)

    def keep_best(self, finished_steps: int) -> None:
        """Make `best` name a checkpoint; collective."""
        self.settle(must=True)
        with self.world.raise_together("naming the best checkpoint"), _explained(self.folder):
            if self.world.rank == 0:
                self.publisher.name_best(finished_steps)

    def seconds_to_save(self, budget_s: float) -> float:
        """How long before the end of a budget the last checkpoint has to be begun."""
        return budget_s * UNKNOWN_SHARE if self._longest_s is None else SLOWEST * self._longest_s

    def _tolerated(self, write: Callable[[], None], *, must: bool) -> None:
        try:
            write()
        except EnvironmentFault as fault:
            if must or self.section.on_error != WARN or isinstance(fault, LocalFault):
                raise
            self.warn(f"{fault.why} ({fault.where}); the run goes on without this checkpoint")

    def _settle(self) -> None:
        try:
            with self.world.raise_together("completing the checkpoint"), _explained(self.folder):
                if self.world.rank == 0:
                    self.publisher.settle()
        except EnvironmentFault:
            self.newest = self._complete
            raise
        self._complete = self.newest
        while self.publisher.warnings:
            self.warn(self.publisher.warnings.pop(0))

    def _save(self, finished_steps: int, progress: Mapping[str, Any], random: Mapping[str, Tensor] | None) -> None:
        name = step_name(finished_steps)
        partial, final = self.folder / f".{name}.partial", self.folder / name
        if not self._is_published(final):
            try:
                self._write(partial, finished_steps, progress, random)
            except BaseException:  # whatever ends it, nothing half written stays
                if self.world.rank == 0:
                    self.publisher.drop(partial)
                raise
        if self.world.rank == 0:
            self.publisher.begin(partial, final)
        self.newest = finished_steps

    def _is_published(self, final: Path) -> bool:
        """Whether this run has written it, and failed when `latest` should name it; collective."""
        with self.world.raise_together("looking for the checkpoint", num_flags=1) as agreed:
            agreed.flags[0] = int(self.world.rank == 0 and self.publisher.published == final)
        return bool(agreed.flags[0])

    def _write(
        self, partial: Path, finished_steps: int, progress: Mapping[str, Any], random: Mapping[str, Tensor] | None
    ) -> None:
        """Every file but the manifest."""
        with self.world.raise_together("making the checkpoint's folder"), _explained(self.folder):
            if self.world.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                refuse_without_room(partial, checkpoint_bytes(self.whole_model.layout, self._num_states()))
        with self.world.raise_together("exporting the weights"), _explained(self.folder):
            export(self.whole_model, self.source, self.image_processor, partial / EXPORT, self.detector)
        if self.section.engine_state:
            with self.world.raise_together("saving the state of the training"), _explained(self.folder):
                self._save_training(partial / TRAINING)
        of_ranks = self.world.gather(random or random_state(self.world.device))
        with self.world.raise_together("finishing the checkpoint"), _explained(self.folder):
            self._save_adapters(partial / ADAPTER)
            if self.world.rank == 0:
                flat = {f"{rank}/{name}": one for rank, own in enumerate(of_ranks) for name, one in own.items()}
                save_file(flat, partial / RANDOM)
                counts = {"finished_steps": finished_steps, "updates": num_updates(self.engine)}
                state = {"format": FORMAT, "engine_state": self.section.engine_state, **counts, **progress}
                (partial / STATE).write_text(json.dumps(state, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def _num_states(self) -> int:
        return len(state_keys(self.engine)) if self.section.engine_state else 0

    def _save_training(self, destination: Path) -> None:
        """Collective; rank 0 copies, to write beside the next steps.

        The first error is raised after the last gather, so that no rank is left waiting.
        """
        writer, fault = None, None
        if self.world.rank == 0:
            try:
                destination.mkdir()
                writer = ShardWriter(destination, later=self.publisher.later)
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

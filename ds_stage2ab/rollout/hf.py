"""Rollouts on the learner's own weights, in process.

At most `decode_batch_size` rows are alive at any moment, and a row that has ended makes room for the next request at
once (`rollout/decoding`). Of samples that are all at hand those with the most true objects come first, whose answers
are probably the longest; answers are returned in request order. No answer depends on the others, nor on anything that
was decoded before: in bf16 rounding depends on what stands in a pass, and a run that goes on from a checkpoint has to
make the same passes.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ds_stage2ab.carriers import Decoding, Probabilities, Rollout, Sample
from ds_stage2ab.codec.text import Codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.rollout.base import Sampling, request_seed, weight_version
from ds_stage2ab.rollout.decoding.attention import SlotMemory, attention_by_slot
from ds_stage2ab.rollout.decoding.capture import RECORDERS
from ds_stage2ab.rollout.decoding.choice import Chooser
from ds_stage2ab.rollout.decoding.drafts import Drafter, true_answer
from ds_stage2ab.rollout.decoding.loop import Loop, started
from ds_stage2ab.rollout.decoding.packed_linear import packed_linears
from ds_stage2ab.rollout.decoding.rows import Request, Row
from ds_stage2ab.rollout.repeat_guard import IncrementalDetector, has_rules

Positions = Callable[[Tensor, Tensor], Tensor]
"""(input_ids [T], image_grid_thw [images, 3]) -> position_ids [4, T]."""


class HfBackend:
    """Decodes on this rank.

    Args:
        whole_model: gathers the full parameters; collective.
        vocabulary: the checkpoint's ids; its vision placeholders are never sampled.
        positions: position ids of one prompt alone.
        decode_batch_size: most rows alive at any moment.
        start_id: new each time a learner process group starts; first half of the weight version.
        seed: `training.seed`.
        check_stop: called before each pass; raises if the run shall stop.
        codec: the text form of answers, for drafts; None: each pass takes one token of an answer.
    """

    streams = False
    recover = None
    probe_gap = None
    transfer = None
    score = None

    def __init__(
        self,
        whole_model: Callable[[], AbstractContextManager[nn.Module]],
        vocabulary: Vocabulary,
        positions: Positions,
        *,
        decode_batch_size: int,
        start_id: str,
        seed: int,
        check_stop: Callable[[], None] = lambda: None,
        codec: Codec | None = None,
    ) -> None:
        self.check_stop = check_stop
        self.whole_model = whole_model
        self.model: nn.Module | None = None  # only inside `current_weights`, as are the slots
        self.memory: SlotMemory | None = None
        self.vocabulary = vocabulary
        self.positions = positions
        self.decode_batch_size = decode_batch_size
        self.start_id = start_id
        self.seed = seed
        self.decoding: Decoding | None = None
        self.codec = codec
        self.recorders = dict(RECORDERS)
        # empty once a pass could not be captured

    @contextmanager
    def current_weights(self, finished_steps: int, *, generates_once: bool = False) -> Iterator[None]:
        """Inside, the full parameters are there: the learner's own, so always current."""
        with self.whole_model() as self.model:
            try:
                yield
            finally:
                self.model = self.memory = None

    def verify_weights(self, finished_steps: int) -> None:
        """Nothing to do: the weights are the learner's own."""

    def settle(self, *, counts: bool) -> None:
        """There are no servers."""

    def generate(self, samples: Sequence[Sample], sampling: Sampling, *, finished_steps: int) -> list[Rollout]:
        """One rollout for each sample, in order; inside `current_weights`.

        Raises:
            TrainingFault: the logits of an answer are not finite.
        """
        if not samples:
            return []
        longest_first = sorted(enumerate(samples), key=lambda one: -len(one[1].objects))
        width = max(len(sample.prompt_ids) for sample in samples) + sampling.max_new_tokens
        return self._decoded(longest_first, sampling, finished_steps, width)

    def generate_lazily(self, samples: Iterable[Sample], sampling: Sampling, *, finished_steps: int) -> list[Rollout]:
        """The same of any number of samples, which are answered as they come and read when slots are free for them."""
        return self._decoded(enumerate(samples), sampling, finished_steps, 0)

    def _decoded(
        self, placed: Iterable[tuple[int, Sample]], sampling: Sampling, finished_steps: int, width: int
    ) -> list[Rollout]:
        """In the order of their places; `width` is that of the slots, as far as it is known."""
        assert self.model is not None, "the weights are at hand inside `current_weights` alone"
        requests = (self._request(place, sample) for place, sample in placed)
        rollouts: dict[int, Rollout] = {}
        with torch.no_grad(), _as_decoder(self.model):
            loop = self._loop(sampling, width)
            for row in loop(requests, self.check_stop):
                rollouts[row.request.place] = self._rollout(row, sampling, finished_steps)
            if loop.captures is not None and loop.captures.failed:
                self.recorders.clear()
        self.decoding = loop.decoding()
        return [rollouts[place] for place in range(len(rollouts))]

    def resolved(self, sampling: Sampling) -> dict[str, Any]:
        """The decoding parameters as they act."""
        return {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "repetition_penalty": sampling.repetition_penalty,
            "max_new_tokens": sampling.max_new_tokens,
            "stop_ids": [self.vocabulary.stop_id],
            "forbidden_ids": sorted(self.vocabulary.vision_ids),
            "repeat_terminate": asdict(sampling.repeat_terminate),
        }

    def _request(self, place: int, sample: Sample) -> Request:
        positions_AT = self.positions(torch.tensor(sample.prompt_ids), sample.vision.image_grid_thw)
        seed = request_seed(self.seed, sample.draw, sample.id, sample.index)
        return Request(place=place, sample=sample, seed=seed, position_ids=positions_AT[1:])

    def _loop(self, sampling: Sampling, width: int) -> Loop:
        """With the slots that are there, if they are wide enough."""
        if self.memory is None or self.memory.width < width:
            self.memory = SlotMemory(self.decode_batch_size, width)
        chooser = Chooser(
            sampling,
            forbidden_ids=self.vocabulary.vision_ids,
            coordinate_ids=self.vocabulary.coordinate_ids,
            num_slots=self.decode_batch_size,
            width=self.memory.width,
            device=self.model.device,
        )
        recorder = self.recorders.get(self.model.device.type)
        record = None if recorder is None else recorder()
        return Loop(self.model, self.memory, chooser, lambda request: self._row(request, sampling), record)

    def _row(self, request: Request, sampling: Sampling) -> Row:
        limits = sampling.repeat_terminate
        counted = self.vocabulary.coordinate_bins, sampling.coordinates_per_object
        guard = IncrementalDetector(limits, *counted) if has_rules(limits) else None
        return started(
            request,
            max_new_tokens=sampling.max_new_tokens,
            stop_id=self.vocabulary.stop_id,
            guard=guard,
            drafter=self._drafter(request.sample),
        )

    def _drafter(self, sample: Sample) -> Drafter | None:
        """With the sample's true answer."""
        if self.codec is None:
            return None
        return Drafter(
            true_answer(sample, self.vocabulary, self.codec),
            self.vocabulary.coordinate_bins,
            self.codec.num_coordinates,
        )

    def _rollout(self, row: Row, sampling: Sampling, finished_steps: int) -> Rollout:
        sample = row.request.sample
        return Rollout(
            sample_id=sample.id,
            draw=sample.draw,
            prompt_ids=sample.prompt_ids,
            response_ids=tuple(row.ids),
            finish=row.finish,
            weight_version=weight_version(self.start_id, finished_steps),
            seed=row.request.seed,
            source="hf",
            seconds=time.monotonic() - row.started,
            attempt=1,
            probabilities=_probabilities(row) if sampling.with_probabilities else None,
            index=sample.index,
        )


def _probabilities(row: Row) -> Probabilities:
    """Of the answer, without the stop."""
    length = len(row.ids)
    return Probabilities(
        log_probs=np.array(row.log_probs[:length], dtype=np.float32),
        coordinate_mass=np.array(row.masses[:length], dtype=np.float32),
    )


@contextmanager
def _as_decoder(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode, attends by slot and has packed weights; all of it is always restored."""
    training = model.training
    model.eval()
    try:
        with attention_by_slot(model), packed_linears(model):
            yield
    finally:
        model.train(training)

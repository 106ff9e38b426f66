"""The objects passed between the parts of the system, and nothing else.

Frozen, slotted, keyword-only; the comment under each field gives its shape and meaning. Letters used for
shapes: T tokens of a segment or a pack, N supervised objects, S segments of a pack, P image patches.
No field holds a config object. Torch is imported for type checkers only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Box = tuple[int, int, int, int]
"""(x1, y1, x2, y2) in coordinate bins 0..999."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """One object of the ground truth (or of a parsed answer): `Truth(desc="cat", box=(110, 310, 410, 705))`."""

    desc: str
    box: Box
    score: int = 999
    # k of 0..999 for the score k / 999, which a scored form writes: the truth is certain


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line of a dataset, checked and quantised, its image not yet opened."""

    id: str
    # the record's own `id`, else "<file name>:<line>"
    image: Path
    # absolute, inside the image root
    width: int
    height: int
    # pixels, after EXIF orientation
    objects: tuple[Truth, ...]
    # in the order in which a target lists them
    where: str
    # "<file>:<line>", for messages
    prompt: str | None = None
    # of the user, for this record alone; None: the config's
    absent: tuple[str, ...] | None = None
    not_exhaustive: tuple[str, ...] = ()
    # descriptions, as `schemas/record.schema.json` explains them; None: what is not among the objects is absent


@dataclass(frozen=True, slots=True, kw_only=True)
class Vision:
    """Image processor output for one image, or for all images of a pack in order."""

    pixel_values: Tensor
    # float [P, channels * temporal_patch * patch * patch]
    image_grid_thw: Tensor
    # long [images, 3]: patches in time, height and width; their products sum to P

    def to(self, device: str) -> Vision:
        return Vision(
            pixel_values=self.pixel_values.to(device, non_blocking=True),
            image_grid_thw=self.image_grid_thw.to(device, non_blocking=True),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One raw sample of a step: the unit of `training.effective_batch_size`."""

    id: str
    draw: int
    # g: position in the run; step s owns [sR, (s+1)R)
    image: bytes
    # the file's bytes, as sent to a rollout server
    width: int
    height: int
    objects: tuple[Truth, ...]
    prompt_ids: tuple[int, ...]
    # chat template applied, image placeholders expanded, ends where the assistant's text begins
    user_prompt: str
    # the words of the user in it, as sent to a rollout server
    vision: Vision
    index: int = 0
    # which of the rollouts of this sample is asked for: 0 .. `best_of` - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A raw sample left out of its step, where the config allows that; it still counts towards the batch size."""

    sample_id: str
    draw: int
    why: str
    # the reason, without the sample id


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Probabilities:
    """Model probabilities of the T tokens of a response."""

    log_probs: NDArray[np.float32]
    # [T] natural logarithms, before temperature and top-p
    coordinate_mass: NDArray[np.float32]
    # [T] total probability of all coordinate tokens at that position


Finish = Literal["stop", "length", "repeat"]
"""How an answer ended: by its stop token, at the token limit, by the repetition guard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """The model's answer to one prompt."""

    sample_id: str
    draw: int
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    # without the stop token
    finish: Finish
    weight_version: str
    # "<start id>/<finished steps>" of the weights that generated it
    seed: int
    source: str
    # backend, and the server's address if there is one
    seconds: float
    attempt: int
    # servers that the request was sent to: 1 unless one failed
    probabilities: Probabilities | None
    # of its tokens; None unless requested, and given by the backend
    index: int = 0
    # which of its sample's rollouts it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """What it took to decode some answers in process; a pass is one forward of the model over all live rows.

    Example: two answers of 3 tokens and one of 2, stops counted, in two slots: passes 1 to 3 compute two rows, 4 and 5
    one. `Decoding(answers=3, tokens=8, passes=5, live=8, slots=10, drafted=0, accepted=0, columns=..., padding=...)`.
    """

    answers: int
    tokens: int
    # of all answers, each stop counted
    passes: int
    live: int
    # rows of all passes
    slots: int
    # `decode_batch_size` for each pass: what `live` could be
    drafted: int
    accepted: int
    # drafted tokens that were verified, and those that the model chose
    columns: int
    padding: int
    # keys that the attention of answers read, and those of them that lay beyond the end of their row


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One transfer of weights to every rollout server: `Transfer(seconds=0.8, num_bytes=538_060_032)`."""

    seconds: float
    # from pausing the first server until the last one resumes
    num_bytes: int
    # received by each server; by some less, if they had what does not train


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedObject:
    """A kept object: one complete value of a rollout."""

    desc: str
    box: Box
    span: tuple[int, int]
    # [first, last) bytes of the value in the text of the response
    desc_span: tuple[int, int]
    # the same for the description, without its quotes; in lines that of the run, before the spans of its later boxes
    tokens: tuple[int, int]
    # [first, last) indices into response_ids of the tokens whose first byte lies in `span`
    slots: tuple[int, int, int, int]
    # indices into response_ids of its four coordinate tokens
    score: int
    # k of 0..999 for the score k / 999; -1 where the form has none
    score_slot: int
    # index into response_ids of that token; -1 where the form has none


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedRollout:
    """A rollout parsed by the grammar of its codec (nothing is repaired)."""

    objects: tuple[ParsedObject, ...]
    # kept, in generated order
    dropped: tuple[str, ...]
    # one reason for each complete value that was dropped, in generated order
    state: str
    # one of matching.parse.STATES
    prefix_ids: tuple[int, ...]
    # generated ids up to the end of the last complete value; without one the codec's opening
    num_anchored: int
    # how many of them are always kept: up to and including the last coordinate token of the last complete value
    num_whole: int
    # how many of them are generated ids; the others spell the kept bytes of a token that was cut
    value_ends: tuple[int, ...]
    # byte offset of the end of each complete value, kept or dropped, in generated order
    next_number: int
    # number of the next appended object, where objects are numbered: the highest that leaves room, plus one
    open_desc: str
    # the description that further boxes behind the prefix would have; empty: an object begins with its description


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """The assignment of predicted to true objects: ascending indices into the two lists.

    Example: of two predictions the second found the only true object: `pairs=((1, 0),), missed=(), spurious=(0,)`.
    """

    pairs: tuple[tuple[int, int], ...]
    # (index into the predicted, index into the true)
    missed: tuple[int, ...]
    # true objects without a partner
    spurious: tuple[int, ...]
    # predicted objects without a partner


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Target:
    """The training target of a sample: an answer and its supervision; positions count from its first id.

    Shapes: T tokens, N supervised objects. Example: in Channel A `bins` are those of the ids at `slots`; in
    Channel B the ids there are the model's own coordinates, and `bins` are the true ones.
    """

    ids: NDArray[np.int64]
    # [T] the last is the end of turn
    weights: NDArray[np.float32]
    # [T] cross-entropy weight of each token; 0 = not supervised
    is_desc: NDArray[np.bool_]
    # [T] tokens of a supervised description's value; generated descriptions are never supervised and not marked
    slots: NDArray[np.int64]
    # [4N] ascending positions of supervised coordinate tokens
    bins: NDArray[np.int64]
    # [4N] the target bin of each slot
    score_slots: NDArray[np.int64]
    # [K] ascending positions of the scores; K >= N, since objects that are not true have one too
    score_bins: NDArray[np.int64]
    # [K] the bin that each should have had
    num_go_on: int
    # supervised tokens that decide to write another object
    num_stop: int
    # supervised tokens that decide to end the answer
    seam_fallback: bool
    # generated and appended text were encoded separately: one encoding of both is not exact


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One sample ready for training; CPU tensors, no batch axis."""

    input_ids: Tensor
    # long [T]: prompt and target
    position_ids: Tensor
    # long [4, T]: text, time, height, width; each starts at 0
    vision: Vision
    weights: Tensor
    # float32 [T]: cross-entropy weight of predicting token t from t-1; 0 = not supervised
    is_desc: Tensor
    # bool [T]: tokens of a description's value (reported separately, already weighted in `weights`)
    slots: Tensor
    # long [4N]: positions t of supervised coordinate tokens, x1 y1 x2 y2 of each object in turn
    bins: Tensor
    # long [4N]: the target bin of each slot
    score_slots: Tensor
    # long [K]: positions t of supervised scores
    score_bins: Tensor
    # long [K]: the target bin of each score
    sample_id: str
    draw: int
    terms: Mapping[str, tuple[float, float]]
    # the channel's metrics of this sample: name -> (sum, count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """Concatenated segments, batch size 1: the input of one forward and backward.

    Example: segments of 3 and 2 tokens give `segment_of = [0, 0, 0, 1, 1]`, `boundaries = [0, 3, 5]`.
    """

    input_ids: Tensor  # long [T]
    position_ids: Tensor
    # long [4, T]: row 0 restarts at each segment, which makes attention block-diagonal
    vision: Vision
    weights: Tensor  # float32 [T]
    is_desc: Tensor  # bool [T]
    slots: Tensor  # long [4N], positions in the pack
    bins: Tensor  # long [4N]
    score_slots: Tensor  # long [K], positions in the pack
    score_bins: Tensor  # long [K]
    segment_of: Tensor  # long [T]
    boundaries: tuple[int, ...]
    # S+1 offsets
    sample_ids: tuple[str, ...]
    num_passes: int
    # forward passes of the expectation loop; equal on all ranks in a round
    real: bool
    # False: a dummy pack, which contributes exactly zero

    def to(self, device: str) -> Pack:
        slots = ("slots", "bins", "score_slots", "score_bins")
        tensors = ("input_ids", "position_ids", "weights", "is_desc", *slots, "segment_of")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in tensors}
        return replace(self, vision=self.vision.to(device), **moved)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """Result of one optimizer step; the same on every rank except `seconds`."""

    applied: bool
    fault: str
    # why it was not applied, and which samples caused it; empty if it was
    loss: float
    # mean of the per-sample losses over R
    terms: dict[str, tuple[float, float]]
    # metric name -> (sum, count) over all ranks
    skipped: tuple[Skipped, ...]
    # samples that contributed nothing, by draw
    samples: int
    # raw samples of the step over all ranks: R
    tokens: int
    # tokens trained on, over all ranks, dummy packs not counted
    packs: int
    # over all ranks, dummy packs not counted
    grad_norm: float
    learning_rate: float
    seconds: dict[str, float]
    # phase -> wall seconds on this rank

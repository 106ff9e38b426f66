"""Held-out rollouts -> figures and pictures; every sample exactly once on any number of ranks."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ds_stage2ab.carriers import Record, Rollout, Sample, Truth
from ds_stage2ab.codec.text import Codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.data.images import load_image
from ds_stage2ab.data.stream import evaluation_draw
from ds_stage2ab.matching.parse import parse_rollout
from ds_stage2ab.matching.score import ImageScore, score_image, set_score
from ds_stage2ab.metrics.pictures import Picture, save_pictures
from ds_stage2ab.rollout.base import RolloutBackend, Sampling
from ds_stage2ab.world import World

WELL_FORMED = ("ok", "empty_answer")
"""Parse states of an answer that was closed as the grammar wants."""

CHUNK = 32
"""Samples that are encoded at a time: bounds the memory that images take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one held-out sample; small, so that ranks can exchange it."""

    index: int
    score: ImageScore
    well_formed: bool
    truncated: bool
    num_tokens: int
    predicted: tuple[Truth, ...]


class Evaluator:
    """Greedy rollouts of a fixed set, scored.

    Args:
        records: the held-out set.
        encode: record and draw -> sample.
        backend: draws the rollouts.
        sampling: how.
        codec: the form that answers are read in.
        vocabulary: the checkpoint's ids.
        world: the learner ranks.
        pictures: folder of the PNG files.
        num_pictures: the first so many records are drawn.
    """

    def __init__(
        self,
        records: Sequence[Record],
        encode: Callable[[Record, int], Sample],
        backend: RolloutBackend,
        sampling: Sampling,
        *,
        codec: Codec,
        vocabulary: Vocabulary,
        world: World,
        pictures: Path,
        num_pictures: int,
    ) -> None:
        self.records = records
        self.encode = encode
        self.backend = backend
        self.sampling = sampling
        self.codec = codec
        self.vocabulary = vocabulary
        self.world = world
        self.pictures = pictures
        self.num_pictures = num_pictures

    def run(self, finished_steps: int) -> dict[str, float]:
        """Figures of the weights after `finished_steps` steps, the same on every rank; rank 0 draws pictures."""
        start = time.monotonic()
        with self.world.agree_on_failure():
            mine = self._outcomes(range(self.world.rank, len(self.records), self.world.size), finished_steps)
        outcomes = sorted((o for part in self.world.gather(mine) for o in part), key=lambda outcome: outcome.index)
        assert [outcome.index for outcome in outcomes] == list(range(len(self.records))), "each sample exactly once"
        seconds = max(self.world.gather(time.monotonic() - start))
        with self.world.agree_on_failure():
            if self.world.rank == 0:
                self._draw(outcomes, finished_steps)
        return figures(outcomes, seconds)

    def _outcomes(self, indices: range, finished_steps: int) -> list[Outcome]:
        outcomes = []
        for first in range(0, len(indices), CHUNK):
            members = indices[first : first + CHUNK]
            samples = [self.encode(self.records[index], evaluation_draw(index)) for index in members]
            rollouts = self.backend.generate(samples, self.sampling, finished_steps=finished_steps)
            outcomes += [self._outcome(index, rollout) for index, rollout in zip(members, rollouts, strict=True)]
        return outcomes

    def _outcome(self, index: int, rollout: Rollout) -> Outcome:
        parsed = parse_rollout(rollout.response_ids, self.vocabulary, self.codec)
        predicted = tuple(Truth(desc=found.desc, box=found.box) for found in parsed.objects)
        return Outcome(
            index=index,
            score=score_image(predicted, self.records[index].objects),
            well_formed=parsed.state in WELL_FORMED and rollout.finish == "stop",
            truncated=rollout.finish == "length",
            num_tokens=len(rollout.response_ids),
            predicted=predicted,
        )

    def _draw(self, outcomes: list[Outcome], finished_steps: int) -> None:
        shown = zip(self.records[: self.num_pictures], outcomes, strict=False)
        save_pictures(self.pictures, finished_steps, [_picture(record, outcome) for record, outcome in shown])


def figures(outcomes: list[Outcome], seconds: float) -> dict[str, float]:
    """`eval/...` name -> value over the whole set."""
    total = set_score([outcome.score for outcome in outcomes])
    count = len(outcomes)
    return {
        "eval/f1": total.f1,
        "eval/precision": total.precision,
        "eval/recall": total.recall,
        "eval/f1_boxes": total.f1_boxes,
        "eval/precision_boxes": total.precision_boxes,
        "eval/recall_boxes": total.recall_boxes,
        "eval/matched_iou": total.matched_iou,
        "eval/parse_ok_rate": sum(outcome.well_formed for outcome in outcomes) / count,
        "eval/predicted_per_true": total.predicted_per_true,
        "eval/truncation_rate": sum(outcome.truncated for outcome in outcomes) / count,
        "eval/samples": count,
        "eval/seconds": seconds,
        "eval/generated_tokens_per_second": sum(outcome.num_tokens for outcome in outcomes) / seconds,
    }


def _picture(record: Record, outcome: Outcome) -> Picture:
    found, hit = zip(*outcome.score.pairs, strict=True) if outcome.score.pairs else ((), ())
    return Picture(
        name=record.id,
        image=load_image(record)[1],
        predicted=outcome.predicted,
        truth=record.objects,
        predicted_matched=tuple(place in found for place in range(len(outcome.predicted))),
        truth_matched=tuple(place in hit for place in range(len(record.objects))),
    )

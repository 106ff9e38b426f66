"""Held-out rollouts -> figures and pictures; every sample exactly once on any number of ranks."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ds_stage2ab.carriers import Record, Rollout, Sample
from ds_stage2ab.codec.text import Codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.data.images import load_image
from ds_stage2ab.errors import DataError, NoServerLeft
from ds_stage2ab.evaluation.answers import answer_line, how_it_ended, save_answers
from ds_stage2ab.evaluation.average_precision import Detections, average_precision, lvis_average_precision
from ds_stage2ab.evaluation.calibration import THRESHOLDS, calibration
from ds_stage2ab.evaluation.detected import BY_PROBABILITY, BY_SCORE, UNRANKED, Detected, detected
from ds_stage2ab.evaluation.f1 import (
    DescriptionCounts,
    ImageScore,
    count_by_description,
    score_image,
    set_score,
    wrong_names,
)
from ds_stage2ab.evaluation.held_out import HeldOut
from ds_stage2ab.evaluation.mistakes import mistakes
from ds_stage2ab.evaluation.pictures import Picture, save_pictures
from ds_stage2ab.matching.duplicates import first_sayings
from ds_stage2ab.matching.parse import REASONS
from ds_stage2ab.rollout.base import RolloutBackend, Sampling
from ds_stage2ab.runtime.ranks import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Detected):
    """Result of one held-out sample."""

    index: int
    score: ImageScore


@dataclass(frozen=True, slots=True, kw_only=True)
class DescriptionRow:
    """Figures of one description; a quotient with denominator 0 is None."""

    description: str
    true: int
    predicted: int
    matched: int
    precision: float | None
    recall: float | None
    f1: float | None
    matched_iou: float | None
    ap: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Result of an evaluation."""

    figures: dict[str, float]
    # `eval/...` name -> value over the whole set
    rows: tuple[DescriptionRow, ...]
    # by description, in alphabetical order


class Evaluator:
    """Scores rollouts of a fixed set.

    Args:
        records: the held-out set.
        encode: record and draw -> sample.
        backend: generates the rollouts.
        sampling: the decoding parameters.
        codec: the text form of answers.
        vocabulary: the checkpoint's ids.
        world: the learner ranks.
        pictures: folder of the PNG files.
        num_pictures: how many records are drawn, from the first.
        warn: says what could not be written.
        answers: folder of the JSONL files, one for each evaluation; None: none is written.
        attempt: which start of the run this is, from 1; stands in every line of them.
        show: takes the PNG files of the pictures.
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
        warn: Callable[[str], None],
        answers: Path | None = None,
        attempt: int = 1,
        show: Callable[[int, Sequence[Path]], None] | None = None,
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
        self.warn = warn
        self.answers = answers
        self.attempt = attempt
        self.show = show

    def run(self, finished_steps: int) -> Evaluation:
        """Evaluate the weights after `finished_steps` steps, the same on every rank; rank 0 draws pictures."""
        start = time.monotonic()
        doing = f"the evaluation after step {finished_steps}"
        # long answers at the end would leave slots empty
        mine = range(self.world.rank, len(self.records), self.world.size)
        indices = sorted(mine, key=lambda index: -len(self.records[index].objects))
        rollouts = self._rollouts(HeldOut(self.records, self.encode, indices), finished_steps, doing)
        with self.world.raise_together(doing):
            judged = [self._outcome(index, rollout) for index, rollout in zip(indices, rollouts, strict=True)]
        outcomes = sorted((o for part in self.world.gather(judged) for o in part), key=lambda outcome: outcome.index)
        assert [outcome.index for outcome in outcomes] == list(range(len(self.records))), "each sample exactly once"
        seconds = max(self.world.gather(time.monotonic() - start))
        with self.world.raise_together("writing the answers and drawing the pictures"):
            if self.world.rank == 0:
                self._save(outcomes, finished_steps)
                self._draw(outcomes, finished_steps)
        return evaluated(outcomes, self.records, seconds)

    def _rollouts(self, samples: HeldOut, finished_steps: int, doing: str) -> list[Rollout]:
        """One for each sample, with the probabilities of its tokens; collective."""
        if self.backend.generate_lazily is not None:
            with self.world.raise_together(doing), self.backend.current_weights(finished_steps):
                return self.backend.generate_lazily(samples, self.sampling, finished_steps=finished_steps)
        with self.backend.current_weights(finished_steps):
            return self._scored_as_they_come(samples, finished_steps)

    def _scored_as_they_come(self, samples: HeldOut, finished_steps: int) -> list[Rollout]:
        """Each answer is scored while later ones are generated elsewhere.

        Every rank scores as often as the one with the most samples, since ZeRO 3 gathers in every forward; a rank that
        has no more scores an empty answer to the first record.
        """
        coming = iter(self.backend.generate(samples, self.sampling, finished_steps=finished_steps))
        rollouts: list[Rollout] = []
        for place in range(self.world.all_reduce_max(len(samples))[0]):
            has_one = place < len(samples)
            rollout = self._next(coming if has_one else iter(()), finished_steps)
            with self.world.raise_together("reading an image of the evaluation again"):
                sample = samples[place] if has_one else samples.sample(0)
            if self.backend.score is not None:
                found = self.backend.score(sample, rollout.response_ids if has_one else ())
                rollout = replace(rollout, probabilities=found) if has_one else None
            rollouts += [rollout] if has_one else []
        assert not any(isinstance(one, Rollout) for one in coming), "one rollout for each sample"
        return rollouts

    def _next(self, coming: Iterator[Rollout | DataError | NoServerLeft], finished_steps: int) -> Rollout | None:
        """The next answer, behind as many recoveries of the servers as any rank needs; collective. None: no more."""
        found, lost = None, 1
        while lost:
            with self.world.raise_together("answering the held-out images", num_flags=1) as agreed:
                found = next(coming, None) if found is None else found
                if isinstance(found, DataError):
                    raise found
                agreed.flags = [int(isinstance(found, NoServerLeft))]
            (lost,) = agreed.flags
            if lost:
                self.backend.recover(finished_steps)
                found = None if isinstance(found, NoServerLeft) else found
        return found

    def _outcome(self, index: int, rollout: Rollout) -> Outcome:
        found = detected(rollout, self.vocabulary, self.codec)
        values = {field.name: getattr(found, field.name) for field in fields(found)}
        return Outcome(index=index, score=score_image(found.predicted, self.records[index].objects), **values)

    def _save(self, outcomes: list[Outcome], finished_steps: int) -> None:
        """Write the answers; where that fails the figures are whole all the same."""
        if self.answers is None:
            return
        try:
            pairs = zip(self.records, outcomes, strict=True)
            lines = ({**answer_line(record, one, one.score), "attempt": self.attempt} for record, one in pairs)
            save_answers(self.answers, finished_steps, lines)
        except OSError as error:
            self.warn(f"the answers are not written: {error}")

    def _draw(self, outcomes: list[Outcome], finished_steps: int) -> None:
        """Draw; where that fails the figures are whole all the same."""
        shown = zip(self.records[: self.num_pictures], outcomes, strict=False)
        try:
            drawn = [_picture(record, outcome) for record, outcome in shown]
            sheet = save_pictures(self.pictures, finished_steps, drawn)
        except (OSError, DataError) as error:
            self.warn(f"the pictures are not drawn: {error}")
            return
        if self.show is not None and sheet is not None:
            self.show(finished_steps, sorted(sheet.with_suffix("").glob("*.png")))


def evaluated(outcomes: Sequence[Outcome], records: Sequence[Record], seconds: float) -> Evaluation:
    """The figures and rows of a set.

    Args:
        outcomes: one for each record, in their order.
        seconds: wall time of the evaluation.
    """
    ranked = outcomes[0].ranked
    rankings = {ranked: _detections(outcomes, records, [outcome.scores for outcome in outcomes])}
    if ranked == BY_SCORE and all(outcome.token_scores is not None for outcome in outcomes):
        rankings[BY_PROBABILITY] = _detections(outcomes, records, [outcome.token_scores for outcome in outcomes])
    precisions = {by: average_precision(detections) for by, detections in rankings.items()}
    counts = count_by_description(
        (outcome.predicted, record.objects, outcome.score.pairs)
        for outcome, record in zip(outcomes, records, strict=True)
    )
    rows = tuple(_row(name, count, precisions[ranked].by_description.get(name)) for name, count in counts.items())
    names = ("ap", "ap50", "ap75")
    found = {f"eval/{name}_{by}": getattr(one, name) for by, one in precisions.items() for name in names}
    if any(record.absent is not None for record in records):
        found |= {f"eval/lvis_ap_{by}": lvis_average_precision(one).ap for by, one in rankings.items()}
    known = {name: value for name, value in found.items() if value is not None}
    scored = _score_figures(rankings[ranked]) if ranked != UNRANKED else {}
    without = _figures_without_duplicates(rankings[ranked])
    wrong = mistakes([(outcome.score, outcome.finish) for outcome in outcomes])
    return Evaluation(figures={**_figures(outcomes, seconds), **wrong, **known, **scored, **without}, rows=rows)


def _figures_without_duplicates(detections: Sequence[Detections]) -> dict[str, float]:
    kept = [first_sayings(image.predicted) for image in detections]
    left = [
        replace(image, predicted=[image.predicted[n] for n in places], scores=[image.scores[n] for n in places])
        for image, places in zip(detections, kept, strict=True)
    ]
    score = set_score([score_image(image.predicted, image.truth) for image in left])
    ap = average_precision(left).ap
    repeated = sum(len(image.predicted) - len(places) for image, places in zip(detections, kept, strict=True))
    figures = {"eval/duplicates_per_answer": repeated / len(detections), "eval/f1_without_duplicates": score.f1}
    return figures if ap is None else figures | {"eval/ap_without_duplicates": ap}


def _detections(
    outcomes: Sequence[Outcome], records: Sequence[Record], scores: Sequence[tuple[float, ...] | None]
) -> list[Detections]:
    """The objects of each image with these scores; all are equal where there are none."""
    return [
        Detections(
            width=record.width,
            height=record.height,
            truth=record.objects,
            predicted=outcome.predicted,
            scores=given or [1.0] * len(outcome.predicted),
            absent=record.absent,
            not_exhaustive=record.not_exhaustive,
        )
        for outcome, record, given in zip(outcomes, records, scores, strict=True)
    ]


def _score_figures(detections: Sequence[Detections]) -> dict[str, float]:
    """What the scores are worth; nothing where nothing is predicted or nothing is true."""
    found = calibration(detections)
    if found is None:
        return {}
    names = [f"eval/above_{round(100 * one)}_percent" for one in THRESHOLDS]
    best = {"eval/best_f1": found.best_f1, "eval/best_f1_threshold": found.best_threshold}
    return {**best, "eval/calibration_error": found.error, **dict(zip(names, found.shares, strict=True))}


def _figures(outcomes: Sequence[Outcome], seconds: float) -> dict[str, float]:
    """`eval/...` name -> value over the whole set; a mean of nothing is left out."""
    total = set_score([outcome.score for outcome in outcomes])
    count = len(outcomes)
    dropped = Counter(reason for outcome in outcomes for reason in outcome.dropped)
    values = sum(len(outcome.predicted) for outcome in outcomes) + dropped.total()
    mass = [sum(parts) for parts in zip(*(outcome.coordinate_mass for outcome in outcomes), strict=True)]
    figures = {
        "eval/f1": total.f1,
        "eval/precision": total.precision,
        "eval/recall": total.recall,
        "eval/f1_boxes": total.f1_boxes,
        "eval/precision_boxes": total.precision_boxes,
        "eval/recall_boxes": total.recall_boxes,
        "eval/matched_iou": total.matched_iou,
        "eval/parse_ok_rate": sum(outcome.well_formed for outcome in outcomes) / count,
        "eval/predicted_per_true": total.predicted_per_true,
        "eval/truncation_rate": sum(outcome.finish == "length" for outcome in outcomes) / count,
        "eval/repeat_rate": sum(outcome.finish == "repeat" for outcome in outcomes) / count,
        "eval/samples": count,
        "eval/seconds": seconds,
        "eval/generated_tokens_per_second": sum(outcome.num_tokens for outcome in outcomes) / seconds,
    }
    if values:
        figures["eval/values_dropped_rate"] = dropped.total() / values
        figures |= {f"eval/drop_{reason}": dropped[reason] / values for reason in REASONS}
    if mass[1]:
        figures["eval/coord_mass"] = mass[0] / mass[1]
    return figures


def _row(name: str, count: DescriptionCounts, ap: float | None) -> DescriptionRow:
    return DescriptionRow(
        description=name,
        true=count.true,
        predicted=count.predicted,
        matched=count.matched,
        precision=count.precision,
        recall=count.recall,
        f1=count.f1,
        matched_iou=count.matched_iou,
        ap=ap,
    )


def _picture(record: Record, outcome: Outcome) -> Picture:
    found, hit = zip(*outcome.score.pairs, strict=True) if outcome.score.pairs else ((), ())
    return Picture(
        name=record.id,
        image=load_image(record)[1],
        predicted=outcome.predicted,
        truth=record.objects,
        predicted_matched=tuple(place in found for place in range(len(outcome.predicted))),
        truth_matched=tuple(place in hit for place in range(len(record.objects))),
        wrong_names=wrong_names(outcome.predicted, record.objects, outcome.score.pairs),
        note=", ".join(how_it_ended(outcome.state, outcome.finish, outcome.dropped)),
    )

"""Channel B, rollout matching: sample an answer, match it with the truth, train on its correction.

Per sample: a rollout with the current weights, a strict parse, a one-to-one match of its objects with the ground
truth, and a target made from both (`stage2_ab.channel_b.target`): the answer rewritten, or the answer with every
missed object appended. With `best_of` above 1 several rollouts are drawn, parsed and matched, and the best is taught.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from ds_stage2ab.carriers import Match, ParsedRollout, Rollout, Sample, Segment, Skipped, Target
from ds_stage2ab.channels.segment import PositionIndex, make_segment, segment_or_skipped
from ds_stage2ab.codec.text import Codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.config.sections import APPEND, GENERATED, ChannelBSection, RolloutMatchingSection
from ds_stage2ab.errors import DataError, EnvironmentFault, NoServerLeft, printable
from ds_stage2ab.matching.append import appended_target
from ds_stage2ab.matching.assign import match_boxes
from ds_stage2ab.matching.best_of import BEST_OF_TERMS, best_of, best_of_terms, quality
from ds_stage2ab.matching.health import TERM_NAMES, rollout_terms, target_terms
from ds_stage2ab.matching.parse import parse_rollout
from ds_stage2ab.matching.targets import rewritten_target
from ds_stage2ab.rollout.base import RolloutBackend, training_sampling, weight_version
from ds_stage2ab.runtime.timers import Clock

PROBE_GAP, SYNC_S, SYNC_BYTES = "rollout/probe_gap", "rollout/sync_s", "rollout/sync_bytes"
SERVER_TERMS = (PROBE_GAP, SYNC_S, SYNC_BYTES)
DECODING_TERMS = (
    "rollout/passes",
    "rollout/tokens_per_pass",
    "rollout/live_slots",
    "rollout/padding",
    "rollout/draft_acceptance",
)


class RolloutMatching:
    """Samples -> segments for Channel B.

    Args:
        backend: generates the rollouts.
        start_id: first half of the weight version that every rollout must carry.
        record: called with the step and rollouts of it, as they arrive.
        codec: the text form of answers.
        vocabulary: the checkpoint's ids.
        positions: position ids of one sample alone.
        section: `custom.extra.rollout_matching`: decoding and matching.
        targets: `stage2_ab.channel_b`: how targets are built.
        desc_ce_weight: cross-entropy weight of supervised descriptions.
        max_length: `training.global_max_length`, tokens.
        skip_overlong: skip a longer sample instead of raising.
        skip_refused: skip a sample that a rollout server refuses instead of raising.
    """

    name = "B"
    num_passes = 1
    term_names = (*TERM_NAMES, *BEST_OF_TERMS, *SERVER_TERMS, *DECODING_TERMS)

    def __init__(
        self,
        backend: RolloutBackend,
        start_id: str,
        record: Callable[[int, Sequence[Rollout]], None],
        *,
        codec: Codec,
        vocabulary: Vocabulary,
        positions: PositionIndex,
        section: RolloutMatchingSection,
        targets: ChannelBSection,
        desc_ce_weight: float,
        max_length: int,
        skip_overlong: bool,
        skip_refused: bool,
    ) -> None:
        self.backend = backend
        self.start_id = start_id
        self.record = record
        self.codec = codec
        self.vocabulary = vocabulary
        self.positions = positions
        self.section = section
        self.sampling = training_sampling(section, codec)
        self.targets = targets
        self.desc_ce_weight = desc_ce_weight
        self.max_length = max_length
        self.skip_overlong = skip_overlong
        self.skip_refused = skip_refused

    @property
    def appends(self) -> bool:
        """Whether missed objects are appended to the answer; else it is rewritten."""
        return self.targets.target == APPEND

    @property
    def streams(self) -> bool:
        """Whether rollouts arrive one by one."""
        return self.backend.streams

    def segments(self, samples: list[Sample], step: int, clock: Clock) -> Iterator[Segment | Skipped | NoServerLeft]:
        """One segment for each sample, in order, from the best of its rollouts after `step` steps.

        Where no rollout server is left a NoServerLeft comes first; the next segment comes after `recover`.

        Raises:
            EnvironmentFault: a rollout was generated with other weights.
            DataError: a target is longer than the cap, an object cannot be written with this tokenizer, or a rollout
                server refuses a sample.
        """
        asked = [replace(sample, index=index) for sample in samples for index in range(self.section.best_of)]
        with self.backend.current_weights(step, generates_once=True):
            with clock("rollout"):
                rollouts = self.backend.generate(asked, self.sampling, finished_steps=step)
            coming = iter(samples)
            for drawn in _in_groups(_clocked(rollouts, clock), self.section.best_of):
                if isinstance(drawn, NoServerLeft):
                    yield drawn
                    continue
                sample = next(coming)
                refused = next((one for one in drawn if isinstance(one, DataError)), None)
                if refused is not None:
                    yield self._skipped(sample, refused)
                    continue
                self.record(step, drawn)
                self._refuse_stale(drawn, step)
                build = partial(self._segment, rollouts=drawn)
                with clock("match"):
                    made = segment_or_skipped(build, sample, skip_overlong=self.skip_overlong)
                yield made
            assert next(coming, None) is None, "a sample without rollouts"

    def recover(self, step: int) -> None:
        """Go on after all rollout servers of a rank have failed; collective.

        Raises:
            ServerFault: none came back in time.
        """
        self.backend.recover(step)

    def _skipped(self, sample: Sample, error: DataError) -> Skipped:
        if not self.skip_refused:
            raise error
        return Skipped(sample_id=sample.id, draw=sample.draw, why=error.why)

    def _segment(self, sample: Sample, rollouts: Sequence[Rollout]) -> Segment:
        read = [self._read(sample, index, rollout) for index, rollout in enumerate(rollouts)]
        qualities = [quality(parsed, match, sample.objects) for parsed, match in read]
        best = best_of(qualities)
        parsed, match = read[best]
        target = self._target(parsed, match, sample)
        reported = (
            rollout_terms(rollouts[best], parsed, match, sample.objects),
            target_terms(target, parsed, match, sample.objects, iou_gate=self.section.iou_gate),
            best_of_terms(rollouts, qualities, best),
            self._server_terms(),
            self._decoding_terms(),
        )
        return make_segment(
            sample,
            target,
            self.positions,
            max_length=self.max_length,
            remedy="custom.extra.rollout_matching.max_new_tokens" if self.appends else "data.max_pixels",
            terms={name: term for terms in reported for name, term in terms.items()},
        )

    def _read(self, sample: Sample, index: int, rollout: Rollout) -> tuple[ParsedRollout, Match]:
        wanted = sample.draw, index, sample.prompt_ids
        assert (rollout.draw, rollout.index, rollout.prompt_ids) == wanted, "a rollout of another sample"
        parsed = parse_rollout(rollout.response_ids, self.vocabulary, self.codec)
        match = match_boxes(
            parsed.objects,
            sample.objects,
            candidate_top_k=self.section.candidate_top_k,
            iou_gate=self.section.iou_gate,
            fp_cost=self.section.fp_cost,
            fn_cost=self.section.fn_cost,
        )
        return parsed, match

    def _target(self, parsed: ParsedRollout, match: Match, sample: Sample) -> Target:
        shared = {"desc_ce_weight": self.desc_ce_weight, "where": sample.id}
        made_of = (parsed, match, sample.objects, self.vocabulary, self.codec)
        if self.appends:
            factor = self.targets.drop_invalid_struct_ce_multiplier
            return appended_target(*made_of, drop_invalid_struct_ce_multiplier=factor, **shared)
        said_order, keep = self.targets.rewrite_order == GENERATED, self.targets.keep_spurious
        return rewritten_target(*made_of, said_order=said_order, keep_spurious=keep, **shared)

    def _server_terms(self) -> dict[str, tuple[float, float]]:
        """Server metrics, the same for every rollout of a step."""
        gap, transfer = self.backend.probe_gap, self.backend.transfer
        sent = (0.0, 0.0, 0.0) if transfer is None else (transfer.seconds, float(transfer.num_bytes), 1.0)
        return {
            PROBE_GAP: (0.0, 0.0) if gap is None else (gap, 1.0),
            SYNC_S: (sent[0], sent[2]),
            SYNC_BYTES: (sent[1], sent[2]),
        }

    def _decoding_terms(self) -> dict[str, tuple[float, float]]:
        """Each rollout of a call of the backend bears an equal part of what the call took."""
        done = self.backend.decoding
        if done is None:
            return dict.fromkeys(DECODING_TERMS, (0.0, 0.0))
        quotients = (
            (done.passes, 1),
            (done.tokens, done.live),
            (done.live, done.slots),
            (done.padding, done.columns),
            (done.accepted, done.drafted),
        )
        parts = ((total / done.answers, count / done.answers) for total, count in quotients)
        return dict(zip(DECODING_TERMS, parts, strict=True))

    def _refuse_stale(self, rollouts: Sequence[Rollout], step: int) -> None:
        wanted = weight_version(self.start_id, step)
        for rollout in (one for one in rollouts if one.weight_version != wanted):
            raise EnvironmentFault(
                f"the rollout of sample {printable(rollout.sample_id)} was made by the weights"
                f" {rollout.weight_version}, not by the current ones, {wanted}",
                where=rollout.source,
                fix="start the run again, and with it whatever serves its rollouts",
            )


def _in_groups(
    rollouts: Iterable[Rollout | DataError | NoServerLeft], size: int
) -> Iterator[list[Rollout | DataError] | NoServerLeft]:
    """So many rollouts of each sample, and between them what is none."""
    drawn: list[Rollout | DataError] = []
    for one in rollouts:
        if isinstance(one, NoServerLeft):
            yield one
            continue
        drawn.append(one)
        if len(drawn) == size:
            yield drawn
            drawn = []
    assert not drawn, "a sample with too few rollouts"


def _clocked(
    rollouts: Iterable[Rollout | DataError | NoServerLeft], clock: Clock
) -> Iterator[Rollout | DataError | NoServerLeft]:
    """The rollouts; the wait for each counts as rollout time."""
    coming = iter(rollouts)
    while True:
        with clock("rollout"):
            rollout = next(coming, None)
        if rollout is None:
            return
        yield rollout

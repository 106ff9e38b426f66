"""One rank's raw samples of one step: counts, metric terms, and the sums over ranks at its end."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator

from ds_stage2ab.carriers import Pack, Sample, Segment, Skipped
from ds_stage2ab.errors import NoServerLeft

Term = tuple[float, float]
"""(sum, count)"""
SAMPLES, KEPT, TOKENS_AND_PACKS = "samples", "kept and supervised", "tokens and packs"


class StepSamples:
    """One rank's raw samples of one step.

    Args:
        drawn: the raw samples, including those that could not be read.
        term_names: the metrics that the channel reports of every sample.
    """

    def __init__(self, drawn: list[Sample | Skipped], term_names: tuple[str, ...]) -> None:
        self.drawn_ids = [one.id if isinstance(one, Sample) else one.sample_id for one in drawn]
        self.samples = [one for one in drawn if isinstance(one, Sample)]
        self.skipped = [one for one in drawn if isinstance(one, Skipped)]
        self.terms: dict[str, Term] = dict.fromkeys(term_names, (0.0, 0.0))
        # of the channel, over the samples that were kept
        self.losses: dict[str, Term] = {}
        # of the objective, over this rank's packs
        self.nonfinite_loss: float | None = None
        # the first one of a pack
        self.nonfinite_ids: list[str] = []
        # samples in packs whose loss is not finite
        self.num_kept = 0
        self.num_supervised = 0
        # of those kept, the ones with a supervised position
        self.packed_ids: list[str] = []
        self.num_tokens = 0
        self.num_packs = 0

    def segments(self, made: Iterable[Segment | Skipped | NoServerLeft]) -> Iterator[Segment | NoServerLeft]:
        """The segments among the results of a channel; skipped samples are counted too."""
        for one in made:
            if isinstance(one, NoServerLeft):
                yield one
                continue
            if isinstance(one, Skipped):
                self.skipped.append(one)
                continue
            self.num_kept += 1
            self.num_supervised += bool(one.weights.any()) or len(one.slots) + len(one.score_slots) > 0
            for name, (total, count) in self.terms.items():
                more = one.terms[name]
                self.terms[name] = total + more[0], count + more[1]
            yield one

    def assert_used_once(self) -> None:
        """Assert that each raw sample was in one pack, or was skipped; a sample that was drawn twice, twice."""
        used = Counter([*self.packed_ids, *(one.sample_id for one in self.skipped)])
        assert used == Counter(self.drawn_ids), "the packs of a step hold other samples than were drawn"

    def count(self, pack: Pack) -> None:
        """Count a pack of this rank that is about to be trained."""
        self.packed_ids += pack.sample_ids
        self.num_tokens += len(pack.input_ids)
        self.num_packs += 1

    def note_loss(self, pack: Pack, loss: float) -> None:
        """Record the loss of a pack, dummy packs included, if it is not finite."""
        if math.isfinite(loss):
            return
        self.nonfinite_loss = loss if self.nonfinite_loss is None else self.nonfinite_loss
        self.nonfinite_ids += pack.sample_ids if pack.real else ()

    def sums(self) -> dict[str, Term]:
        """The sums to all-reduce: losses, the channel's terms, and sizes; the same names on every rank."""
        return {
            **self.losses,
            **self.terms,
            SAMPLES: (len(self.drawn_ids), 0),
            KEPT: (self.num_kept, self.num_supervised),
            TOKENS_AND_PACKS: (self.num_tokens, self.num_packs),
        }

"""What a rank takes in during one step: counts and terms of raw samples, as their segments come and go into packs."""

from collections import Counter
from collections.abc import Iterable, Iterator

from ds_stage2ab.carriers import Pack, Sample, Segment, Skipped


class StepSamples:
    """One rank's raw samples of one step.

    Args:
        drawn: the raw samples, those that could not be read among them.
        term_names: what the channel reports of every sample.
    """

    def __init__(self, drawn: list[Sample | Skipped], term_names: tuple[str, ...]) -> None:
        self.drawn_ids = [one.id if isinstance(one, Sample) else one.sample_id for one in drawn]
        self.samples = [one for one in drawn if isinstance(one, Sample)]
        self.skipped = [one for one in drawn if isinstance(one, Skipped)]
        self.terms = dict.fromkeys(term_names, (0.0, 0.0))
        # (sum, count) over the samples that were kept
        self.num_kept = 0
        self.num_supervised = 0
        # of those kept, the ones with a supervised position
        self.packed_ids: list[str] = []
        self.num_tokens = 0
        self.num_packs = 0

    def segments(self, made: Iterable[Segment | Skipped]) -> Iterator[Segment]:
        """The segments among what a channel made of the samples; all are counted."""
        for one in made:
            if isinstance(one, Skipped):
                self.skipped.append(one)
                continue
            self.num_kept += 1
            self.num_supervised += bool(one.weights.any()) or len(one.slots) > 0
            for name, (total, count) in self.terms.items():
                more = one.terms[name]
                self.terms[name] = total + more[0], count + more[1]
            yield one

    @property
    def num_drawn(self) -> int:
        return len(self.drawn_ids)

    def assert_used_once(self) -> None:
        """Each raw sample stood in one pack, or was skipped; a sample that was drawn twice, twice."""
        used = Counter([*self.packed_ids, *(one.sample_id for one in self.skipped)])
        assert used == Counter(self.drawn_ids), "the packs of a step hold other samples than were drawn"

    def count(self, pack: Pack) -> None:
        """Note a pack of this rank that is about to be trained."""
        self.packed_ids += pack.sample_ids
        self.num_tokens += len(pack.input_ids)
        self.num_packs += 1

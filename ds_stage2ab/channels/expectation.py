"""Channel A, the expectation loop: teacher forcing on the ground truth.

The target is the answer that the codec writes for the ground truth. The loop itself (further passes that
read expected embeddings at the coordinate slots) is in the objective; the channel only sets the number of passes.
"""

from collections.abc import Iterator

from ds_stage2ab.carriers import Sample, Segment, Skipped
from ds_stage2ab.channels.noise import entries_with_noise
from ds_stage2ab.channels.segment import Overlong, PositionIndex, make_segment, segment_or_skipped
from ds_stage2ab.codec.text import Codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.errors import ConfigError
from ds_stage2ab.matching.targets import answer_target
from ds_stage2ab.runtime.timers import Clock


class Expectation:
    """Samples -> segments for Channel A.

    Args:
        codec: writes the answer.
        vocabulary: the checkpoint's ids.
        positions: position ids of one sample alone.
        num_passes: `stage2_ab.n_softctx_iter`.
        desc_ce_weight: cross-entropy weight of the tokens of a description's value.
        num_noise: `stage2_ab.noise_objects` of each sample.
        seed: `training.seed`, of the noise objects.
        max_length: `training.global_max_length`, tokens.
        skip_overlong: skip a longer sample instead of raising.
    """

    name = "A"
    streams = False
    term_names = ()

    def __init__(
        self,
        codec: Codec,
        vocabulary: Vocabulary,
        positions: PositionIndex,
        *,
        num_passes: int,
        desc_ce_weight: float,
        num_noise: int,
        seed: int,
        max_length: int,
        skip_overlong: bool,
    ) -> None:
        self.codec = codec
        self.vocabulary = vocabulary
        self.positions = positions
        self.num_passes = num_passes
        self.desc_ce_weight = desc_ce_weight
        self.num_noise = num_noise
        self.seed = seed
        self.max_length = max_length
        self.skip_overlong = skip_overlong

    def segments(self, samples: list[Sample], step: int, clock: Clock) -> Iterator[Segment | Skipped]:
        """One segment for each sample, in order; depends on the sample only, not on the step."""
        for sample in samples:
            yield segment_or_skipped(self.segment, sample, skip_overlong=self.skip_overlong)

    def dummy_segment(self, blank: Sample) -> Segment:
        """The segment of dummy packs.

        Raises:
            ConfigError: it does not fit, and no sample of the data will.
        """
        try:
            return self.segment(blank)
        except Overlong as error:
            raise ConfigError(
                f"not even a small white image with one object fits: {error.why}",
                where="training.global_max_length",
                fix="raise it, or shorten data.system_prompt and data.user_prompt",
            ) from error

    def segment(self, sample: Sample) -> Segment:
        """The sample's prompt and the answer to it.

        Raises:
            DataError: they are longer than the cap, or an object cannot be written with this tokenizer.
        """
        return make_segment(
            sample,
            answer_target(
                entries_with_noise(sample, self.num_noise, self.seed),
                self.vocabulary,
                self.codec,
                desc_ce_weight=self.desc_ce_weight,
                where=sample.id,
            ),
            self.positions,
            max_length=self.max_length,
            remedy="data.max_pixels",
            terms={},
        )

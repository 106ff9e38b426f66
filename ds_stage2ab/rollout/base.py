"""The interface of rollout backends: samples in, one rollout each out, in the same order."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from ds_stage2ab.carriers import Decoding, Probabilities, Rollout, Sample, Transfer
from ds_stage2ab.codec.text import Codec
from ds_stage2ab.config.sections import DecodingSection, RepeatTerminateSection, RolloutMatchingSection
from ds_stage2ab.errors import DataError, NoServerLeft
from ds_stage2ab.metrics.servers import FleetChanges

if TYPE_CHECKING:  # not in a server's environment, which loads `rollout/draws.py` without what the file needs
    from ds_stage2ab.detector_file import DetectorFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """All decoding parameters, so that none is left to a checkpoint's generation_config.json."""

    temperature: float
    # 0 is greedy
    top_p: float
    # 1 is off
    top_k: int
    # 0 is off
    repetition_penalty: float
    # 1 is off
    max_new_tokens: int
    repeat_terminate: RepeatTerminateSection
    # the guard's limits
    coordinates_per_object: int
    # of an answer, as the guard counts objects
    with_probabilities: bool
    # whether a rollout carries the probabilities of its tokens


SEED_BYTES = 8
"""Of a digest; shifted right by one, a request's seed fits a signed 64-bit integer."""


def request_seed(seed: int, draw: int, sample_id: str, index: int = 0) -> int:
    """The sampling seed of one request, in 0..2^63-1: every request of a run has its own.

    The first 8 bytes of blake2b("seed/g/sample_id"), big-endian, shifted right by one; of the further rollouts of a
    sample "g.1", "g.2", ... stand in the place of g.
    """
    turn = f"{draw}.{index}" if index else f"{draw}"
    digest = hashlib.blake2b(f"{seed}/{turn}/{sample_id}".encode()).digest()
    return int.from_bytes(digest[:SEED_BYTES], "big") >> 1


def weight_version(start_id: str, finished_steps: int) -> str:
    """The weight version of a rollout: which start of the learner, and how many finished steps."""
    return f"{start_id}/{finished_steps}"


def training_sampling(section: RolloutMatchingSection, codec: Codec) -> Sampling:
    """Decoding parameters of Channel B."""
    plain = evaluation_sampling(section, section.decoding, codec)
    return replace(plain, repetition_penalty=section.repetition_penalty, with_probabilities=False)


def evaluation_sampling(
    limits: "RolloutMatchingSection | DetectorFile", decoding: DecodingSection, codec: Codec
) -> Sampling:
    """Decoding parameters of held-out answers: `evaluation.decoding`, without a repetition penalty."""
    return Sampling(
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        top_k=decoding.top_k,
        repetition_penalty=1.0,
        max_new_tokens=limits.max_new_tokens,
        repeat_terminate=limits.repeat_terminate,
        coordinates_per_object=codec.num_coordinates,
        with_probabilities=True,
    )


class RolloutBackend(Protocol):
    """Generates rollouts with the current weights of the learner."""

    streams: bool
    # whether `generate` returns at once and yields rollouts as they arrive
    probe_gap: float | None
    # gap between the servers' log-probabilities and the learner's, nats per token; None: not probed, or no servers
    decoding: Decoding | None
    # what the last `generate` took; None where the rollouts are decoded elsewhere
    transfer: Transfer | None
    # the last transfer of weights to the servers; None: there was none
    score: Callable[[Sample, Sequence[int]], Probabilities] | None
    # the learner's probabilities of an answer; collective. None: `generate` records them, or they are never needed
    generate_lazily: Callable[..., list[Rollout]] | None
    # as `generate`, of any number of samples, each of which is read when its turn has come; None: there is no such turn
    recover: Callable[[int], None] | None
    # what a batch goes on after that has yielded NoServerLeft, with the number of finished steps; collective. None:
    # `generate` never does

    def current_weights(self, finished_steps: int, *, generates_once: bool = False) -> AbstractContextManager[None]:
        """Collective; inside, `generate` uses the weights after so many steps.

        Inside, each rank may generate any number of times, for any number of samples.

        Args:
            generates_once: every rank generates once inside, and at once. The first of its rollouts is then collective:
                what proves the weights may be awaited there, while requests are under way.
        """
        ...

    def generate(
        self, samples: Sequence[Sample], sampling: Sampling, *, finished_steps: int
    ) -> Iterable[Rollout | DataError | NoServerLeft]:
        """One rollout for each sample, in the samples' order, each stamped with the weights' version.

        A backend that streams takes each sample when it sends its request, from any thread.

        A sample that is refused yields its DataError as a value: the caller decides whether to skip it.
        """
        ...

    def resolved(self, sampling: Sampling) -> dict[str, Any]:
        """The decoding parameters as passed on to the generator, under the same names for every backend."""
        ...

    def verify_weights(self, finished_steps: int) -> None:
        """Verify that rollouts would use the weights after so many steps; collective."""
        ...

    def settle(self, *, counts: bool) -> FleetChanges | None:
        """Behind rollouts: what has changed among the servers; collective. None: there are no servers.

        Args:
            counts: whether this is the end of a step, from which the next changes are counted.
        """
        ...


def sampling_record(
    backend: RolloutBackend, section: RolloutMatchingSection, evaluation: DecodingSection, codec: Codec
) -> dict[str, Any]:
    """The decoding parameters of a run: the same for the same config, for every backend that generates."""
    return {
        "training": backend.resolved(training_sampling(section, codec)),
        "evaluation": backend.resolved(evaluation_sampling(section, evaluation, codec)),
    }

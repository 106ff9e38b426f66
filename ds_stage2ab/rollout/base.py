"""What every rollout backend is: samples in, one rollout each out, in the same order."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from ds_stage2ab.carriers import Probabilities, Rollout, Sample, Transfer
from ds_stage2ab.config.sections import DecodingSection, RepeatTerminateSection, RolloutMatchingSection
from ds_stage2ab.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Every field of decoding, so that nothing is left to a checkpoint's generation_config.json."""

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
    with_probabilities: bool
    # whether a rollout says how probable its tokens were


SEED_BYTES = 8
"""Of a digest; shifted right by one, a request's seed fits a signed 64-bit integer."""


def request_seed(seed: int, draw: int, sample_id: str) -> int:
    """The sampling seed of one request, in 0..2^63-1: every request of a run has its own.

    The first 8 bytes of blake2b("seed/g/sample_id"), big-endian, shifted right by one.
    """
    digest = hashlib.blake2b(f"{seed}/{draw}/{sample_id}".encode()).digest()
    return int.from_bytes(digest[:SEED_BYTES], "big") >> 1


def weight_version(start_id: str, finished_steps: int) -> str:
    """What every rollout carries: which start of the learner, and how many steps its weights have seen."""
    return f"{start_id}/{finished_steps}"


def training_sampling(section: RolloutMatchingSection) -> Sampling:
    """How Channel B draws."""
    return Sampling(
        temperature=section.decoding.temperature,
        top_p=section.decoding.top_p,
        top_k=section.decoding.top_k,
        repetition_penalty=section.repetition_penalty,
        max_new_tokens=section.max_new_tokens,
        repeat_terminate=section.repeat_terminate,
        with_probabilities=False,
    )


def evaluation_sampling(section: RolloutMatchingSection, decoding: DecodingSection) -> Sampling:
    """How held-out answers are drawn: by `evaluation.decoding`, without a repetition penalty."""
    return Sampling(
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        top_k=decoding.top_k,
        repetition_penalty=1.0,
        max_new_tokens=section.max_new_tokens,
        repeat_terminate=section.repeat_terminate,
        with_probabilities=True,
    )


class RolloutBackend(Protocol):
    """Draws rollouts with the current weights of the learner."""

    streams: bool
    # `generate` returns at once, and its rollouts come one by one
    probe_gap: float | None
    # how far what wrote them computes from the learner, nats per token; None: it is the learner
    transfer: Transfer | None
    # the last one of weights to what writes them; None: there is none
    score: Callable[[Sample, Sequence[int]], Probabilities] | None
    # how probable the learner finds an answer; all ranks enter together. None: rollouts carry their own probabilities

    def current_weights(self, finished_steps: int) -> AbstractContextManager[None]:
        """All ranks enter it together; inside, `generate` uses the weights after so many steps.

        Inside, each rank may generate as often as it likes, for as many samples as it has.
        """
        ...

    def generate(
        self, samples: list[Sample], sampling: Sampling, *, finished_steps: int
    ) -> Iterable[Rollout | DataError]:
        """One rollout for each sample, in the samples' order, each stamped with the weights' version.

        A sample that whoever draws refuses has its error there, as a value: whether it is skipped is the caller's word.
        """
        ...

    def resolved(self, sampling: Sampling) -> dict[str, Any]:
        """What is handed on so that answers are drawn this way, in the same words whoever draws."""
        ...

    def verify_weights(self, finished_steps: int) -> None:
        """Show that rollouts would be of the weights after so many steps; all ranks enter together."""
        ...


def sampling_record(
    backend: RolloutBackend, section: RolloutMatchingSection, evaluation: DecodingSection
) -> dict[str, Any]:
    """How a run draws, as its backend hands it on: the same record for the same config, whoever draws."""
    return {
        "training": backend.resolved(training_sampling(section)),
        "evaluation": backend.resolved(evaluation_sampling(section, evaluation)),
    }


def all_drawn(made: Iterable[Rollout | DataError]) -> list[Rollout]:
    """What `generate` made, where no sample may be skipped.

    Raises:
        DataError: a sample was refused.
    """
    rollouts = []
    for one in made:
        if isinstance(one, DataError):
            raise one
        rollouts.append(one)
    return rollouts

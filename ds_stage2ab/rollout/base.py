"""What every rollout backend is: samples in, one rollout each out, in the same order."""

from dataclasses import dataclass
from typing import Protocol

from ds_stage2ab.carriers import Rollout, Sample


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


GREEDY = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}


class RolloutBackend(Protocol):
    """Draws rollouts with the current weights of the learner."""

    def generate(self, samples: list[Sample], sampling: Sampling, *, finished_steps: int) -> list[Rollout]:
        """One rollout for each sample, in the samples' order, each stamped with the weights' version."""
        ...

    def close(self) -> None: ...

"""One request and the answer that grows in its row; plain numbers, on the host.

Invariants:
- an answer ends at its stop, at the token limit, or with the token that breaks a rule of the guard, and there alone;
- the tokens that are taken are those that one pass for each token would have taken, whatever the draft says;
- after each pass all tokens but the last are in the slot.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ds_stage2ab.carriers import Finish, Sample
from ds_stage2ab.rollout.decoding.drafts import Drafter
from ds_stage2ab.rollout.repeat_guard import IncrementalDetector


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """One sample that waits for its answer."""

    place: int
    # its index among the requests
    sample: Sample
    seed: int
    position_ids: Tensor
    # long [3, T] of the prompt: time, height, width

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.sample.prompt_ids


@dataclass(slots=True, kw_only=True, eq=False)
class Row:
    """An answer that is being written."""

    request: Request
    started: float
    # seconds, monotonic
    offset: int
    # what turns a column of the slot into the position of a token after the prompt
    max_new_tokens: int
    stop_id: int
    guard: IncrementalDetector | None
    drafter: Drafter | None
    ids: list[int] = field(default_factory=list)
    # the answer so far
    log_probs: list[float] = field(default_factory=list)
    masses: list[float] = field(default_factory=list)
    # of its tokens, where they are recorded
    draft: list[int] = field(default_factory=list)
    # what the next pass verifies; always less than `room`
    num_cached: int = 0
    # tokens in the slot
    num_drafted: int = 0
    num_accepted: int = 0
    # tokens of drafts, and those of them that were what the model chose
    finish: Finish | None = None

    @property
    def room(self) -> int:
        """Tokens that may still come."""
        return self.max_new_tokens - len(self.ids)

    def fed(self) -> list[int]:
        """The tokens that the next pass computes: the prompt, or the newest token; then the draft."""
        return [*(self.ids[-1:] if self.num_cached else self.request.prompt), *self.draft]

    def take(self, chosen: list[int]) -> int:
        """Take what a pass has chosen after the newest token and after each token of the draft.

        Args:
            chosen: [1 + draft]; the first, and each one whose predecessors are the draft's, is what the model says.

        Returns: how many of them were taken, a stop included.
        """
        context, num_taken = len(self.fed()) - len(self.draft), 0
        for token, drafted in zip(chosen, [*self.draft, None], strict=True):
            num_taken += 1
            self._append(token)
            if self.finish is not None or token != drafted:
                break
        self.num_cached += context + num_taken - 1
        self.num_drafted += len(self.draft)
        self.num_accepted += num_taken - 1
        self.propose(chosen[:num_taken])
        return num_taken

    def propose(self, taken: Sequence[int]) -> None:
        """Draft what comes after these tokens."""
        self.draft = []
        if self.drafter is not None and self.finish is None:
            self.drafter.read(taken)
            self.draft = self.drafter.propose()[: self.room - 1]

    def _append(self, token: int) -> None:
        if token == self.stop_id:
            self.finish = "stop"
            return
        self.ids.append(token)
        repeats = self.guard is not None and self.guard.read([token])
        if not self.room:
            self.finish = "length"
        elif repeats:
            self.finish = "repeat"

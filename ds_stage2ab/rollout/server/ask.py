"""One sample put to one server, and the answer as a rollout."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from ds_stage2ab.carriers import Probabilities, Rollout, Sample
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.errors import DataError, ServerFault, printable
from ds_stage2ab.rollout.base import Sampling, request_seed
from ds_stage2ab.rollout.record import SERVED
from ds_stage2ab.rollout.repeat_guard import first_repeat
from ds_stage2ab.rollout.server.api import ServerApi
from ds_stage2ab.rollout.server.chat import Answer, Conversation, other_prompt, read_answer
from ds_stage2ab.rollout.server.http_client import ClientError, ServerUnavailable
from ds_stage2ab.rollout.server.request_pool import ServerLost

WRONG_SAMPLE = (400, 413, 422)
"""Status codes that concern an image or a prompt; others (404, 401) are not about the sample."""
ASK_AGAIN = "look at the server's own log; the rollouts of a step are complete or the step is not trained"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Puts samples to servers."""

    conversation: Conversation
    vocabulary: Vocabulary
    seed: int
    # `training.seed`
    read_s: float
    # longest wait for one answer
    log_probs: bool
    # whether the server is asked for the probabilities of its tokens; they are then those of the rollout

    def __call__(
        self, server: ServerApi, sample: Sample, sampling: Sampling, *, version: str, attempt: int
    ) -> Rollout | DataError:
        """The rollout, or the fault of a sample that the server refuses: every server would refuse it.

        Args:
            version: of the server's weights.
            attempt: servers that this request was sent to, this one counted.

        Raises:
            ServerLost: the server does not answer, refuses what is not about the sample, or makes other ids of the
                prompt than the learner.
        """
        seed = request_seed(self.seed, sample.draw, sample.id, sample.index)
        begun = time.monotonic()
        body = self.conversation.request(sample, sampling, seed)
        if self.log_probs:
            body |= {"logprobs": True, "top_logprobs": 0}
        try:
            answer = read_answer(server.chat(body, read_s=self.read_s), self.vocabulary)
            if self.log_probs and len(answer.log_probs) < len(answer.response_ids):
                raise ServerUnavailable("the answer has no log-probabilities, which were asked for")
        except ServerUnavailable as error:
            why = f"the rollout of sample {printable(sample.id)}: {error}"
            fault = ServerFault(why, where=server.url, fix=ASK_AGAIN)
            raise ServerLost from _caused(fault, error)
        except ClientError as error:
            return _refused(server.url, sample, error)
        if answer.prompt_ids != sample.prompt_ids:
            raise ServerLost from other_prompt(server.url, sample, answer.prompt_ids)
        return self._guarded(
            Rollout(
                sample_id=sample.id,
                draw=sample.draw,
                prompt_ids=answer.prompt_ids,
                response_ids=answer.response_ids,
                finish=answer.finish,
                weight_version=version,
                seed=seed,
                source=SERVED + server.url,
                seconds=time.monotonic() - begun,
                attempt=attempt,
                probabilities=_probabilities(answer) if self.log_probs else None,
                index=sample.index,
            ),
            sampling,
        )

    def _guarded(self, rollout: Rollout, sampling: Sampling) -> Rollout:
        """The rollout up to where the repetition guard ends it.

        The guard inside the server only saves tokens that would be cut here: the ids alone show that a rule was broken,
        so an answer that it ended by force is a repetition too, as in `generate`. At the limit no stop was forced.
        """
        counted = self.vocabulary.coordinate_bins, sampling.repeat_terminate, sampling.coordinates_per_object
        end = first_repeat(rollout.response_ids, *counted)
        if end is None or end == sampling.max_new_tokens:
            return rollout
        return replace(rollout, response_ids=rollout.response_ids[:end], finish="repeat")


def _probabilities(answer: Answer) -> Probabilities:
    """Of the answer without its stop; a server tells nothing of the tokens that it did not choose."""
    known = np.array(answer.log_probs[: len(answer.response_ids)], dtype=np.float32)
    return Probabilities(log_probs=known, coordinate_mass=np.full_like(known, np.nan))


def _refused(url: str, sample: Sample, error: ClientError) -> DataError:
    """The fault of a sample that a server refuses.

    Raises:
        ServerLost: the refusal is not about the sample.
    """
    if error.status not in WRONG_SAMPLE:
        fix = "look at the server's own log: it took such requests at the start; is it still what base_url names?"
        why = f"the rollout of sample {printable(sample.id)}: the server {error}"
        raise ServerLost from _caused(ServerFault(why, where=url, fix=fix), error)
    return DataError(
        f"the rollout server {url} {error}",
        where=f"sample {printable(sample.id)}",
        fix="look at this image and its prompt, or set data.on_bad_sample to skip",
    )


def _caused(fault: ServerFault, cause: BaseException) -> ServerFault:
    fault.__cause__ = cause
    return fault

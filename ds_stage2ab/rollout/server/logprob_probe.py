"""Compares the log-probabilities that a server reports of some tokens with the learner's.

Versions and checksums can be right while a server computes with something else, such as a packed copy of old weights;
its log-probabilities would show it. All ranks score together, since under ZeRO 3 a forward is a collective.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ds_stage2ab.errors import ServerFault
from ds_stage2ab.rollout.scoring import Positions, answer_logits
from ds_stage2ab.rollout.server.api import ServerApi, as_server_fault
from ds_stage2ab.rollout.server.chat import Answer, other_prompt, read_answer
from ds_stage2ab.rollout.server.fan_out import begun
from ds_stage2ab.rollout.server.handshake import IS_VLLM, Requirements
from ds_stage2ab.runtime.ranks import World

PROBE_TOKENS = 32
"""At most: fewer if the prompt leaves less room."""
PROBE_SEED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Servers that are asked the probe."""

    urls: tuple[str, ...]
    replicas: tuple[tuple[str, int | None], ...]
    # each that is asked, by its server and its number
    answers: Callable[[], list[Answer | ServerFault]]
    # waits for them; rank 0's


class Probe:
    """Compares the servers with the learner on one prompt with an image.

    Args:
        model: the model that trains, with DeepSpeed's hooks.
        world: the learner ranks.
        requirements: the sample whose prompt and image are used, and how requests are made.
        positions: position ids of one sequence alone.
        tolerance: largest mean absolute difference, nats per token.
    """

    def __init__(
        self,
        model: nn.Module,
        world: World,
        requirements: Requirements,
        positions: Positions,
        *,
        tolerance: float,
    ) -> None:
        self.model = model
        self.world = world
        self.sample = requirements.sample
        self.positions = positions
        self.conversation = requirements.conversation
        self.vocabulary = requirements.vocabulary
        self.tolerance = tolerance
        self.num_tokens = min(PROBE_TOKENS, requirements.room - len(requirements.sample.prompt_ids))

    def ask(self, servers: Sequence[ServerApi], replicas: Sequence[int], *, read_s: float) -> Asked:
        """Send the probe, from rank 0, and wait for nothing.

        Args:
            replicas: of each.
            read_s: longest wait for a server's answer.
        """
        pairs = [(server, one) for server, count in zip(servers, replicas, strict=True) for one in _numbers(count)]
        answers: Callable[[], list[Answer | ServerFault]] = list
        if self.world.rank == 0:
            calls = [partial(self._asked, server, one, read_s) for server, one in pairs]
            answers = begun(calls, within_s=max(server.longest_s(read_s) for server in servers))
        urls = tuple(server.url for server in servers)
        return Asked(urls=urls, replicas=tuple((server.url, one) for server, one in pairs), answers=answers)

    def judge(self, asked: Asked) -> dict[str, float | ServerFault]:
        """Of each server the largest gap of its replicas, nats per token, or its fault; collective.

        The same on every rank. A fault: it computes with other weights, or does not answer.
        """
        with self.world.raise_together("probing the servers' weights"):
            answers = asked.answers()
        answers = self.world.broadcast_object(answers)
        found: dict[str, float | ServerFault] = dict.fromkeys(asked.urls, 0.0)
        for (url, one), answer in zip(asked.replicas, answers, strict=True):
            seen = answer if isinstance(answer, ServerFault) else self._judged(url, one, answer)
            before = found[url]
            if not isinstance(before, ServerFault):
                found[url] = seen if isinstance(seen, ServerFault) else max(before, seen)
        return self.world.broadcast_object(found)

    def _judged(self, url: str, replica: int | None, answer: Answer) -> float | ServerFault:
        gap = self._gap(answer)
        return gap if gap <= self.tolerance else _differs(url, replica, gap, self.tolerance)

    def _asked(self, server: ServerApi, replica: int | None, read_s: float) -> Answer | ServerFault:
        try:
            return self._ask(server, replica, read_s)
        except ServerFault as fault:
            return fault

    def _ask(self, server: ServerApi, replica: int | None, read_s: float) -> Answer:
        body = self.conversation.probe(self.sample, num_tokens=self.num_tokens, seed=PROBE_SEED)
        with as_server_fault(server.url, "answering the probe"):
            answer = read_answer(server.chat(body, read_s=read_s, replica=replica), self.vocabulary)
        if answer.prompt_ids != self.sample.prompt_ids:
            raise other_prompt(server.url, self.sample, answer.prompt_ids)
        told, wanted = len(answer.log_probs), len(answer.response_ids)
        if told != wanted:
            raise ServerFault(
                f"answering the probe: {told} log-probabilities of {wanted} tokens", where=server.url, fix=IS_VLLM
            )
        return answer

    def _gap(self, answer: Answer) -> float:
        mine = self._log_probs(answer.response_ids)
        return float((mine - torch.tensor(answer.log_probs, dtype=torch.float64)).abs().mean())

    def _log_probs(self, response: Sequence[int]) -> Tensor:
        """The learner's log-probability of each token of the response, [T]."""
        logits_TV = answer_logits(self.model, self.sample, response, self.positions)
        log_probs_TV = torch.log_softmax(logits_TV.double(), dim=-1).cpu()
        return log_probs_TV.gather(1, torch.tensor(response)[:, None])[:, 0]


def _numbers(replicas: int) -> Sequence[int | None]:
    """The replicas to probe: each by its number where there are several, as each loads the weights by itself."""
    return range(replicas) if replicas > 1 else (None,)


def _differs(url: str, replica: int | None, gap: float, tolerance: float) -> ServerFault:
    who = "the server" if replica is None else f"replica {replica} of the server"
    return ServerFault(
        f"{who} computes with other weights than the learner: log-probabilities of the same tokens differ by"
        f" {gap:.3g} nats per token, the tolerance is {tolerance:g}",
        where=url,
        fix="start the server again from model.path with the plugin of this package; where both compute in a low"
        " precision and nothing else is wrong, raise custom.extra.rollout_matching.vllm.probe.tolerance",
    )

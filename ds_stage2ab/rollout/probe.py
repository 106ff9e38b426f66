"""Proof of behaviour: the server says how probable its weights found some tokens, the learner scores the same tokens.

Versions and checksums can be right while a server computes with something else, a packed copy of old weights say; what
it computes cannot be wrong and agree. All ranks score together, so that under ZeRO 3 every rank enters every gathering.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ds_stage2ab.errors import ServerFault
from ds_stage2ab.losses.attention import segment_arguments
from ds_stage2ab.rollout.chat import Answer, other_prompt, read_answer
from ds_stage2ab.rollout.handshake import Needs
from ds_stage2ab.rollout.vllm_api import ServerApi, blamed
from ds_stage2ab.world import World

PROBE_TOKENS = 32
PROBE_SEED = 20


class Probe:
    """Compares the servers with the learner on one prompt with an image.

    Args:
        model: the model that trains, as DeepSpeed's hooks know it.
        world: the learner ranks.
        needs: the sample whose prompt and image are used, and how the servers are asked.
        positions: position ids of one sequence alone.
        tolerance: largest mean absolute difference, nats per token.
    """

    def __init__(
        self,
        model: nn.Module,
        world: World,
        needs: Needs,
        positions: Callable[[Tensor, Tensor], Tensor],
        *,
        tolerance: float,
    ) -> None:
        self.model = model
        self.world = world
        self.sample = needs.sample
        self.positions = positions
        self.conversation = needs.conversation
        self.vocabulary = needs.vocabulary
        self.tolerance = tolerance

    def __call__(self, servers: Sequence[ServerApi], *, read_s: float) -> float:
        """The largest gap of any server, nats per token; all ranks enter together.

        Args:
            servers: used on rank 0 alone.
            read_s: longest wait for a server's answer.

        Raises:
            ServerFault: on every rank, a server computes with other weights, or does not answer.
        """
        answers: list[Answer] = []
        with self.world.agree_on_failure("probing the servers' weights"):
            if self.world.rank == 0:
                answers = [self._ask(server, read_s) for server in servers]
        answers = self.world.from_first(answers)
        gaps = [self._gap(answer) for answer in answers]
        with self.world.agree_on_failure("comparing the servers' weights"):
            for server, gap in zip(servers, gaps, strict=True):
                if not gap <= self.tolerance:
                    raise _differs(server.url, gap, self.tolerance)
        return max(gaps)

    def _ask(self, server: ServerApi, read_s: float) -> Answer:
        body = self.conversation.probe(self.sample, num_tokens=PROBE_TOKENS, seed=PROBE_SEED)
        with blamed(server.url, "answering the probe"):
            answer = read_answer(server.chat(body, read_s=read_s), self.vocabulary)
        if answer.prompt_ids != self.sample.prompt_ids or len(answer.log_probs) != len(answer.response_ids):
            raise other_prompt(server.url, self.sample, answer.prompt_ids)
        return answer

    def _gap(self, answer: Answer) -> float:
        mine = self._log_probs(answer.response_ids)
        return float((mine - torch.tensor(answer.log_probs, dtype=torch.float64)).abs().mean())

    @torch.no_grad()
    def _log_probs(self, response: Sequence[int]) -> Tensor:
        """How probable the learner finds each token of the response, [T]."""
        first, device = len(self.sample.prompt_ids), next(self.model.parameters()).device
        ids = torch.tensor([*self.sample.prompt_ids, *response])
        vision = self.sample.vision.to(device)
        training = self.model.training
        self.model.eval()
        try:
            logits = self.model(
                input_ids=ids[None].to(device),
                position_ids=self.positions(ids, self.sample.vision.image_grid_thw)[:, None].to(device),
                attention_mask=None,
                use_cache=False,
                pixel_values=vision.pixel_values.to(self.model.dtype),
                image_grid_thw=vision.image_grid_thw,
                logits_to_keep=torch.arange(first - 1, len(ids) - 1, device=device),
                **segment_arguments(self.model, (0, len(ids))),
            ).logits[0]
        finally:
            self.model.train(training)
        log_probs = torch.log_softmax(logits.double(), dim=-1).cpu()
        return log_probs.gather(1, ids[first:, None])[:, 0]


def _differs(url: str, gap: float, tolerance: float) -> ServerFault:
    return ServerFault(
        f"the server computes with other weights than the learner: log-probabilities of the same tokens differ by"
        f" {gap:.3g} nats per token, the tolerance is {tolerance:g}",
        where=url,
        fix="start the server again from model.path with the plugin of this package; where both compute in a low"
        " precision and nothing else is wrong, raise custom.extra.rollout_matching.vllm.probe.tolerance",
    )

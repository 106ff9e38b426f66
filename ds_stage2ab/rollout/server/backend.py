"""Rollouts by vLLM servers on separate devices, with weights that are verified to be the learner's.

`Servers` proves the servers before rollouts are sampled. Meanwhile each rank keeps its permits at every server in use.
Behind each answer it reads the server's version: an answer that is used was made by the weights that were proven.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from ds_stage2ab.carriers import Rollout, Sample, Transfer
from ds_stage2ab.errors import DataError, NoServerLeft, ServerFault
from ds_stage2ab.metrics.servers import FleetChanges
from ds_stage2ab.rollout.base import Sampling, weight_version
from ds_stage2ab.rollout.scoring import Scorer
from ds_stage2ab.rollout.server.ask import Asker
from ds_stage2ab.rollout.server.fleet import permits_of
from ds_stage2ab.rollout.server.http_client import TRIES
from ds_stage2ab.rollout.server.proving import Servers
from ds_stage2ab.rollout.server.request_pool import Interrupted, RequestPool
from ds_stage2ab.rollout.server.versions import refuse_other_version
from ds_stage2ab.runtime.ranks import World

MOST_LOSSES = 3
"""How often all servers may fail in one batch: a request that ends each server that gets it must not go on for ever."""

Answer = Rollout | DataError
Drawn = tuple[list[str], RequestPool[Answer]]
"""The addresses of the servers, and what is asked of them."""


class VllmBackend:
    """Generates rollouts on servers.

    Args:
        servers: the servers of the run; their requirements say how a prompt is put to them.
        score: computes the learner's probabilities of an answer.
        world: the learner ranks.
        seed: `training.seed`.
        check_stop: called while rollouts are awaited; raises if the run shall stop.
    """

    streams = True
    decoding = None
    generate_lazily = None

    def __init__(
        self,
        servers: Servers,
        *,
        score: Scorer,
        world: World,
        seed: int,
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self.servers = servers
        self.score = score
        self.world = world
        self.check_stop = check_stop
        requirements = servers.requirements
        self.conversation = requirements.conversation
        self.vocabulary = requirements.vocabulary
        self.decode_batch_size = requirements.decode_batch_size
        self.asker = Asker(
            conversation=requirements.conversation,
            vocabulary=requirements.vocabulary,
            seed=seed,
            read_s=requirements.infer_timeout_s,
            log_probs=False,  # the learner's own are computed by `score`
        )
        self.infer_timeout_s = requirements.infer_timeout_s
        self.drawn: Drawn | None = None
        # the batch that is being drawn, or was last

    @property
    def transfer(self) -> Transfer | None:
        """The last transfer of this start."""
        return self.servers.sync.last

    @property
    def probe_gap(self) -> float | None:
        """Of the last probe, nats per token."""
        return self.servers.gap

    @contextmanager
    def current_weights(self, finished_steps: int, *, generates_once: bool = False) -> Iterator[None]:
        """Inside, every server that serves has the current weights; collective. See `RolloutBackend`.

        Raises:
            ServerFault: on every rank, no server is left, or one fails at the start of the run.
        """
        begun = time.monotonic()
        self.servers.prove(finished_steps, leaves_open=generates_once)
        self.servers.proving_s += time.monotonic() - begun
        yield

    def verify_weights(self, finished_steps: int) -> None:
        """Send the servers the current weights and probe them, whatever the interval; collective.

        Raises:
            ServerFault: as `current_weights`.
        """
        self.servers.prove(finished_steps, probes_all=True)

    def settle(self, *, counts: bool) -> FleetChanges:
        """See `Servers.settle`."""
        return self.servers.settle(counts=counts)

    def recover(self, finished_steps: int) -> None:
        """Prove servers again in the middle of a batch, of which open requests are sent again afterwards; collective.

        Raises:
            ServerFault: as `current_weights`.
        """
        if self.drawn is not None:
            self.drawn[1].interrupt()
            self._note(*self.drawn)
        with self.current_weights(finished_steps):
            pass

    def generate(
        self, samples: Sequence[Sample], sampling: Sampling, *, finished_steps: int
    ) -> Iterator[Answer | NoServerLeft]:
        """One rollout for each sample, in order, each as soon as it arrives; inside `current_weights`.

        A sample that a server refuses yields its DataError as a value: every server would refuse it. Where all servers
        have failed their fault is yielded, and the next rollout comes after `recover`.

        Raises:
            NoServerLeft: all servers have failed too often.
        """
        sent: Counter[int] = Counter()
        answered = losses = 0
        self.drawn = self._draw(samples, sampling, range(len(samples)), finished_steps, sent)
        is_open = self._is_proven()
        if not self.servers.fleet.serving:
            yield self.servers.none_left()
        while answered < len(samples):
            if not is_open:
                self.drawn = self._draw(samples, sampling, range(answered, len(samples)), finished_steps, sent)
            is_open = False
            try:
                for answer in self._in_order(*self.drawn):
                    answered += 1
                    yield answer
            except Interrupted:  # another rank had no server left
                continue
            except NoServerLeft as lost:
                losses += 1
                if losses > MOST_LOSSES:
                    raise
                yield lost

    def _is_proven(self) -> bool:
        """Whether the batch goes on when the probe that is open has been judged, if one is; collective then.

        Answers of a server that fails it are not read: the batch ends, and all of it is drawn again.
        """
        urls, pool = self.drawn
        faults = self.servers.judge_probe()
        if faults:
            pool.interrupt()
            self._note(urls, pool)
        return not faults

    def _draw(
        self, samples: Sequence[Sample], sampling: Sampling, asked: range, finished_steps: int, sent: Counter[int]
    ) -> Drawn:
        """Send the requests of these samples.

        Args:
            sent: of each sample, how many servers got it.
        """
        version = weight_version(self.servers.sync.start_id, finished_steps)
        serving = self.servers.fleet.serving
        apis, replicas = [self.servers.api(one.url) for one in serving], [one.replicas for one in serving]
        avoided = {place for place, one in enumerate(serving) if one.url in self.servers.noted}
        if len(avoided) == len(apis):  # all have failed a chunk of this batch: one may have come back
            avoided = set()

        def ask(request: int, server: int, attempt: int) -> Answer:
            place = asked[request]
            sent[place] += 1
            answer = self.asker(apis[server], samples[place], sampling, version=version, attempt=sent[place])
            refuse_other_version(apis[server], version)
            return answer

        permits = permits_of(self.world.rank, self.world.size, replicas, self.decode_batch_size)
        if not any(count for place, count in enumerate(permits) if place not in avoided):
            permits = [max(1, count) for count in permits]  # at the servers that are left this rank has none
        pool = RequestPool(len(asked), permits, ask, avoided=avoided)
        return [one.url for one in serving], pool

    def resolved(self, sampling: Sampling) -> dict[str, Any]:
        """The decoding parameters of a request; the guard's limits are applied here too, whatever the server does."""
        told = self.conversation.decoding(sampling)
        return {
            "temperature": told["temperature"],
            "top_p": told["top_p"],
            "top_k": told["top_k"],
            "repetition_penalty": told["repetition_penalty"],
            "max_new_tokens": told["max_completion_tokens"],
            "stop_ids": told["stop_token_ids"],
            "forbidden_ids": sorted(token for text in told["bad_words"] for token in self.vocabulary.encode(text)),
            "repeat_terminate": asdict(sampling.repeat_terminate),
        }

    def _in_order(self, urls: list[str], pool: RequestPool[Answer]) -> Iterator[Answer]:
        # A request may wait for its permit until those before it have ended, and each of them may try every server.
        longest = self.infer_timeout_s * TRIES * len(urls) * (1 + len(pool.futures))
        try:
            yield from pool.results(within_s=longest, check=self.check_stop)
        finally:
            self._note(urls, pool)
            self.servers.note_busy({urls[n]: seconds for n, seconds in pool.busy.items()})

    def _note(self, urls: list[str], pool: RequestPool[Answer]) -> None:
        """Which servers have failed a batch, each once."""
        causes, pool.causes = pool.causes, {}
        faults = {urls[n]: cause for n, cause in causes.items() if isinstance(cause, ServerFault)}
        self.servers.noted = {**faults, **self.servers.noted}

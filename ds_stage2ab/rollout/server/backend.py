"""Rollouts by vLLM servers on separate devices, with weights that are verified to be the learner's.

Before rollouts are sampled all ranks send the current weights to the servers, check the version at every server, and
probe what the servers compute. Meanwhile each rank keeps its permits at every server in use; afterwards it checks the
version again.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from ds_stage2ab.carriers import Rollout, Sample, Transfer
from ds_stage2ab.config.servers import split_requests
from ds_stage2ab.errors import DataError, ServerFault, printable
from ds_stage2ab.rollout.base import Sampling, weight_version
from ds_stage2ab.rollout.scoring import Scorer
from ds_stage2ab.rollout.server.api import ServerApi, as_server_fault
from ds_stage2ab.rollout.server.ask import Asker
from ds_stage2ab.rollout.server.handshake import Requirements
from ds_stage2ab.rollout.server.http_client import TRIES, ServerUnavailable
from ds_stage2ab.rollout.server.logprob_probe import Probe
from ds_stage2ab.rollout.server.request_pool import RequestPool
from ds_stage2ab.rollout.server.weight_sync import WeightSync
from ds_stage2ab.runtime.ranks import World


class VllmBackend:
    """Generates rollouts on servers.

    Args:
        servers: all of them.
        replicas: of each server.
        permits: requests that this rank may have in flight at each server.
        requirements: how a prompt is put to them, and the longest wait for one answer.
        sync: sends the weights.
        probe: compares log-probabilities; its gap is reported.
        score: computes the learner's probabilities of an answer.
        world: the learner ranks.
        seed: `training.seed`.
        probe_every: transfers between two probes.
        check_stop: called while rollouts are awaited; raises if the run shall stop.
    """

    streams = True
    decoding = None

    def __init__(
        self,
        servers: Sequence[ServerApi],
        replicas: Sequence[int],
        permits: Sequence[int],
        requirements: Requirements,
        *,
        sync: WeightSync,
        probe: Probe,
        score: Scorer,
        world: World,
        seed: int,
        probe_every: int,
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self.servers = servers
        self.replicas = replicas
        # A server where this rank has no permit gets none of its requests.
        self.shares = [count if permit else 0 for count, permit in zip(replicas, permits, strict=True)]
        self.permits = permits
        self.sync = sync
        self.probe = probe
        self.score = score
        self.world = world
        self.check_stop = check_stop
        self.conversation = requirements.conversation
        self.vocabulary = requirements.vocabulary
        self.asker = Asker(
            conversation=requirements.conversation,
            vocabulary=requirements.vocabulary,
            seed=seed,
            read_s=requirements.infer_timeout_s,
            log_probs=False,  # the learner's own are computed by `score`
        )
        self.infer_timeout_s = requirements.infer_timeout_s
        self.probe_every = probe_every
        self.sent = 0  # number of transfers of weights
        self.probed = ""  # weight version of the last probe; empty if weights were sent since
        self.probe_gap: float | None = None
        # of the last probe, nats per token

    @property
    def transfer(self) -> Transfer | None:
        """The last transfer of this start."""
        return self.sync.last

    @contextmanager
    def current_weights(self, finished_steps: int) -> Iterator[None]:
        """Inside, every server has the current weights; collective.

        Raises:
            ServerFault: on every rank, a server does not take the weights, has another version after a second
                transfer, or computes with others.
        """
        sent = self.sync.sync_weights(finished_steps)
        if self._someone_sees_another(self.sync.version):
            sent = self.sync.sync_weights(finished_steps, again=True)
            if self._someone_sees_another(self.sync.version):
                with self.world.raise_together("looking at the weights' versions"):
                    self._refuse_other_versions(finished_steps, self.servers)
        if sent:
            self.probed = ""  # not probed since this transfer
            self.sent += 1
        if sent and self.sent % self.probe_every == 0:
            self._probe()
        yield

    def verify_weights(self, finished_steps: int) -> None:
        """Send the servers the current weights and probe them, whatever the interval; collective.

        Raises:
            ServerFault: as `current_weights`.
        """
        with self.current_weights(finished_steps):
            if self.probed != self.sync.version:
                self._probe()

    def _probe(self) -> None:
        self.probe_gap = self.probe(self.servers, self.replicas, read_s=self.infer_timeout_s)
        self.probed = self.sync.version

    def generate(
        self, samples: list[Sample], sampling: Sampling, *, finished_steps: int
    ) -> Iterator[Rollout | DataError]:
        """One rollout for each sample, in order, each as soon as it arrives; inside `current_weights`.

        A sample that a server refuses yields its DataError as a value: every server would refuse it.

        Raises:
            ServerFault: no server answers a request, or one has other weights when all are sampled.
        """
        version = weight_version(self.sync.start_id, finished_steps)

        def ask(request: int, server: int, attempt: int) -> Rollout | DataError:
            return self.asker(self.servers[server], samples[request], sampling, version=version, attempt=attempt)

        drawn = RequestPool(split_requests(len(samples), self.shares), self.permits, ask)
        return self._in_order(drawn, finished_steps, len(samples))

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

    def _in_order(
        self, drawn: RequestPool[Rollout | DataError], finished_steps: int, count: int
    ) -> Iterator[Rollout | DataError]:
        # A request may wait for its permit until those before it have ended, and each of them may try every server.
        longest = self.infer_timeout_s * TRIES * len(self.servers) * (1 + count)
        yield from drawn.results(within_s=longest, check=self.check_stop)
        kept = [server for n, server in enumerate(self.servers) if n not in drawn.lost]
        self._refuse_other_versions(finished_steps, kept)
        lost = [self.servers[n] for n in drawn.lost & drawn.gave]
        self._refuse_other_versions(finished_steps, lost, may_be_gone=True)

    def _someone_sees_another(self, version: str) -> bool:
        """Whether any rank sees a server with another version; collective."""
        with self.world.raise_together("looking at the weights' versions"):
            other = any(self._version_at(server) != version for server in self.servers)
        return bool(self.world.all_reduce_max(int(other))[0])

    def _refuse_other_versions(
        self, finished_steps: int, servers: Sequence[ServerApi], *, may_be_gone: bool = False
    ) -> None:
        """Raise if a server has other weights; a lost one passes if it `may_be_gone`: it was checked before."""
        wanted = weight_version(self.sync.start_id, finished_steps)
        for server in servers:
            try:
                seen = self._version_at(server)
            except ServerFault as error:
                if may_be_gone and isinstance(error.__cause__, ServerUnavailable):
                    continue
                raise
            if seen != wanted:
                raise ServerFault(
                    f"the server has the weights {printable(seen)}, not the current ones, {wanted}",
                    where=server.url,
                    fix="let nobody else send it weights, nor start it again while a run uses it",
                )

    def _version_at(self, server: ServerApi) -> str:
        with as_server_fault(server.url, "telling the version of its weights"):
            return server.weight_version()

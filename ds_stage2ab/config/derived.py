"""Numbers that follow from a valid config and a topology, for the summary line of `validate`."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ds_stage2ab.config.batch import BatchShape, counted, implied_learners, shape_batch
from ds_stage2ab.config.servers import replicas_of, request_window, split_requests

MAX_SHARES = 8  # servers whose shares are listed one by one


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerShare:
    """How the rollouts of one learner rank are split over the servers in a step of Channel B."""

    replicas: list[int]
    # per server
    request_window: int
    # the least number of requests that a rank may have in flight
    per_server: list[int]
    # rollouts of the rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """What `validate` reports of a valid config."""

    shape: BatchShape
    rollouts_per_rank: int
    # in a B step: `best_of` for each sample
    b_ratio: str
    decode_batch_size: int
    backend: str
    servers: ServerShare | None
    # None: no servers are used

    @property
    def sentence(self) -> str:
        per_rank = counted(self.shape.samples_per_rank, "sample")
        return f"{self.shape.sentence}; {per_rank} per rank and step; b_ratio {self.b_ratio}{self._rollouts}"

    @property
    def _rollouts(self) -> str:
        per_rank = counted(self.rollouts_per_rank, "rollout")
        if self.servers is not None:
            replicas = counted(sum(self.servers.replicas), "server replica")
            window = f"request window {self.servers.request_window} per rank"
            return f"; {replicas}, {window}, whose {per_rank} go {_in_words(self.servers.per_server)}"
        how = "replayed" if self.backend == "replay" else f"{self.decode_batch_size} at a time"
        return "" if self.b_ratio == "0" else f"; {per_rank} per rank, {how}"

    @property
    def numbers(self) -> dict:
        """The same as plain data, for programs."""
        return {
            **asdict(self.shape),
            "samples_per_rank": self.shape.samples_per_rank,
            "rollouts_per_rank": self.rollouts_per_rank,
            "b_ratio": self.b_ratio,
            "rollout_backend": self.backend,
            "decode_batch_size": self.decode_batch_size,
            "servers": None if self.servers is None else asdict(self.servers),
        }


def derive(resolved: dict, learners: int | None, rollout_devices: int | None) -> Derived:
    """The numbers of a config without problems.

    Args:
        resolved: its values, defaults filled in.
        learners: learner ranks; None: the number that the config implies.
        rollout_devices: devices of all servers together; None: one replica per server.

    Raises:
        ConfigError: the topology does not fit the config (rules 1 to 3).
    """
    training, rollouts = resolved["training"], resolved["custom"]["extra"]["rollout_matching"]
    numbers = {
        "effective_batch_size": training["effective_batch_size"],
        "per_device": training["per_device_train_batch_size"],
        "accumulation": training["gradient_accumulation_steps"],
    }
    shape = shape_batch(**numbers, learners=learners or implied_learners(**numbers))
    per_rank = shape.samples_per_rank * rollouts["best_of"]
    uses_servers = rollouts["rollout_backend"] == "vllm"
    return Derived(
        shape=shape,
        rollouts_per_rank=per_rank,
        b_ratio=str(resolved["stage2_ab"]["schedule"]["b_ratio"]),
        decode_batch_size=rollouts["decode_batch_size"],
        backend=rollouts["rollout_backend"],
        servers=_share(rollouts, shape.learners, per_rank, rollout_devices) if uses_servers else None,
    )


def _in_words(shares: list[int]) -> str:
    """`about 11, 11, 10 to the servers in order`; a long row as its range."""
    if len(shares) == 1:
        return "to one server"
    if len(shares) > MAX_SHARES:
        return f"to {len(shares)} servers, about {min(shares)} to {max(shares)} each"
    return f"about {', '.join(str(share) for share in shares)} to the servers in order"


def _share(rollouts: dict, learners: int, per_rank: int, rollout_devices: int | None) -> ServerShare:
    sizes = [server["tensor_parallel_size"] for server in rollouts["vllm"]["server"]["servers"]]
    replicas = replicas_of(sizes, rollout_devices)
    return ServerShare(
        replicas=replicas,
        request_window=request_window(rollouts["decode_batch_size"], replicas, learners),
        per_server=[len(part) for part in split_requests(per_rank, replicas)],
    )

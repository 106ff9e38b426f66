"""What a simulated step is made of: requests, what things take, and who does them."""

from __future__ import annotations

from dataclasses import dataclass

ONE_EACH = "several rollouts of a sample are not simulated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One rollout and the segment that is made of it, in tokens."""

    prompt: int
    answer: int
    # passes of decoding: its stop counts
    segment: int
    # prompt and target, as trained in a B step
    a_segment: int
    # the same in an A step


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCosts:
    """Of one replica of a server, or of a learner that decodes itself; seconds."""

    pass_s: float
    # of a decoding pass, whatever its rows
    row_s: float
    # more for each row of it
    prompt_token_s: float
    request_s: float
    # all rows stand still while a request is taken in: for its image and text, and for each token of its prompt
    turnaround_s: float
    # from an answer to the next request of its permit
    tokens_per_pass: float
    # of an answer; above 1 with drafts


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferCosts:
    """Of the weights to the servers, and of what proves that they have them."""

    fixed_s: float
    # pausing, emptying caches, versions, and what does not depend on the servers' number
    version_s: float
    # more for each server: every rank asks one after another
    num_bytes: float
    server_bytes_per_s: float
    # that a server takes and loads
    learner_bytes_per_s: float
    # that rank 0 sends to all servers together


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerCosts:
    """Of one learner rank; seconds."""

    sample_s: float
    # reading and encoding
    match_s: float
    # of a rollout, with its target
    pack_s: float
    token_s: float
    # forward and backward of a pack in a B step: whatever its length, and for each token
    a_pack_s: float
    a_token_s: float
    # the same in an A step, all of its passes
    update_s: float
    exchange_bytes: float
    exchange_bytes_per_s: float
    # gradients that the ranks exchange once a step


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    server: ServerCosts
    transfer: TransferCosts
    learner: LearnerCosts


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Who does a step, and in which portions."""

    learners: int
    servers: int
    # replicas of all servers together; 0: the learners decode themselves
    decode_batch_size: int
    per_device: int
    # raw samples per rank and micro-step
    pack_tokens: int
    # `training.global_max_length`
    packing: bool
    cores: int | None
    # that learners and servers share; None: each has its own device


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """One simulated step; seconds."""

    whole: float
    servers_busy: float
    # from the first request to the last answer, the mean of all servers
    learners_busy: float
    # at work, the mean of all ranks
    proof: float
    # until the servers have proven that they have the weights
    rollouts: float
    # behind it, until the last answer of the slowest rank

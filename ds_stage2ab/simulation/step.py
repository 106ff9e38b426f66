"""Requests + costs + who does them -> the seconds of an A step and of a B step.

A B step as the code runs it: samples are read; weights are sent and proven, and everybody waits; then servers decode
while each learner takes its rollouts in their order, matches them, and trains a pack as soon as one is closed and every
rank has one; the update comes last. Learners that decode themselves do one after the other.

Invariants:
- servers have no requests in an A step
- what a server or a learner is busy is at most the step
- more servers never make rollouts take longer
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from ds_stage2ab.config.servers import server_slots
from ds_stage2ab.packs.binpack import pack_lengths
from ds_stage2ab.packs.online import MAX_OPEN, pack_online
from ds_stage2ab.simulation.costs import Costs, Request, Setup, StepTime
from ds_stage2ab.simulation.decoding import Tally, at_servers, decode
from ds_stage2ab.simulation.machine import Machine, Process, Signal


@dataclass(frozen=True, slots=True)
class PlannedPack:
    """A pack of a rank."""

    tokens: int
    needs: int
    # rollouts, in their order, without which it is not closed


def a_step(requests: Sequence[Request], setup: Setup, costs: Costs) -> StepTime:
    """Samples are read, packed, trained round by round; servers wait."""
    packs = [_offline([one.a_segment for one in own], setup) for own in dealt(requests, setup)]
    trained, mine = _rounds(packs, costs.learner.a_pack_s, costs.learner.a_token_s)
    slowed = _slowed(setup)
    around = _around(setup, costs, len(requests)) * slowed
    return StepTime(
        whole=around + trained * slowed,
        servers_busy=0.0,
        learners_busy=around + mine * slowed,
        proof=0.0,
        rollouts=0.0,
    )


def b_step(requests: Sequence[Request], setup: Setup, costs: Costs) -> StepTime:
    """The requests of the whole step, in the order of their draws."""
    return _served(requests, setup, costs) if setup.servers else _decoded_alone(requests, setup, costs)


def dealt(requests: Sequence[Request], setup: Setup) -> list[list[Request]]:
    """By rank: micro-step by micro-step each takes `per_device` of them."""
    ranks: list[list[Request]] = [[] for _ in range(setup.learners)]
    for place, request in enumerate(requests):
        ranks[place // setup.per_device % setup.learners].append(request)
    return ranks


def proof_s(setup: Setup, costs: Costs) -> float:
    """Until all servers have proven that they have the weights."""
    transfer = costs.transfer
    sent = transfer.num_bytes * setup.servers / transfer.learner_bytes_per_s
    loaded = transfer.num_bytes / transfer.server_bytes_per_s
    return transfer.fixed_s + transfer.version_s * setup.servers + max(sent, loaded)


def _around(setup: Setup, costs: Costs, samples: int) -> float:
    """Of a rank: reading samples, the exchange of gradients around the ring (Patarasu and Yuan 2009), the update."""
    learner = costs.learner
    ring = 2 * (setup.learners - 1) / setup.learners * learner.exchange_bytes / learner.exchange_bytes_per_s
    return learner.sample_s * samples / setup.learners + ring + learner.update_s


def _slowed(setup: Setup) -> float:
    """How much longer work takes that all ranks do at once."""
    return max(1.0, setup.learners / setup.cores) if setup.cores else 1.0


def _offline(lengths: list[int], setup: Setup) -> list[PlannedPack]:
    bins = pack_lengths(lengths, setup.pack_tokens) if setup.packing else [[place] for place in range(len(lengths))]
    return [PlannedPack(sum(lengths[place] for place in members), len(lengths)) for members in bins]


def _online(lengths: Sequence[int], setup: Setup) -> list[PlannedPack]:
    """Which packs `packs.online` closes, and at which segment."""
    seen = 0

    def coming() -> Iterator[int]:
        nonlocal seen
        for length in lengths:
            seen += 1
            yield length

    room: Callable[[int], int] = (lambda length: length) if setup.packing else (lambda length: setup.pack_tokens)
    packs = pack_online(coming(), room, setup.pack_tokens, max_open=MAX_OPEN if setup.packing else 1)
    return [PlannedPack(sum(members), seen) for members, _ in packs]


def _rounds(packs: Sequence[Sequence[PlannedPack]], pack_s: float, token_s: float) -> tuple[float, float]:
    """Seconds of all rounds, each as long as its longest pack, and what a rank is at work in them, on average."""
    whole = 0.0
    for place in range(max(map(len, packs))):
        whole += max(pack_s + token_s * own[place].tokens for own in packs if place < len(own))
    mine = sum(pack_s + token_s * one.tokens for own in packs for one in own)
    return whole, mine / len(packs)


def _served(requests: Sequence[Request], setup: Setup, costs: Costs) -> StepTime:
    machine, ranks = Machine(setup.cores), dealt(requests, setup)
    permits = server_slots(setup.decode_batch_size, [1] * setup.servers, setup.learners)
    arrived = [[Signal() for _ in own] for own in ranks]
    ends, works, last = [0.0] * setup.servers, [0.0] * setup.learners, [0.0]

    def answered(server: int, rank: int, place: int) -> None:
        ends[server] = last[0] = machine.now
        machine.give(arrived[rank][place])

    owned = [at_servers(list(enumerate(own)), permits[rank]) for rank, own in enumerate(ranks)]
    planned = [_online([one.segment for one in own], setup) for own in ranks]
    rounds = [Signal(setup.learners) for _ in range(max(map(len, planned)))]
    learner = partial(_learner, machine=machine, costs=costs, rounds=rounds, works=works)
    for rank in range(setup.learners):
        machine.start(learner(rank, planned[rank], arrived[rank]))
    for server in range(setup.servers):
        owners = [mine[server] for mine in owned]
        machine.start(decode(owners, costs.server, partial(answered, server), Tally()))
    pipeline, around = machine.run(), _around(setup, costs, len(requests)) * _slowed(setup)
    proof = proof_s(setup, costs)
    return StepTime(
        whole=around + proof + pipeline,
        servers_busy=sum(ends) / setup.servers,
        learners_busy=around + sum(works) / setup.learners,
        proof=proof,
        rollouts=last[0],
    )


def _learner(
    rank: int,
    packs: Sequence[PlannedPack],
    arrived: Sequence[Signal],
    *,
    machine: Machine,
    costs: Costs,
    rounds: Sequence[Signal],
    works: list[float],
) -> Process:
    """Takes rollouts in their order; a round begins when every rank has its pack, or none left."""
    taken = 0
    for place, begins in enumerate(rounds):
        pack = packs[place] if place < len(packs) else PlannedPack(0, len(arrived))
        for signal in arrived[taken : pack.needs]:
            yield signal
            begun = machine.now
            yield costs.learner.match_s
            works[rank] += machine.now - begun
        taken = max(taken, pack.needs)
        machine.give(begins)
        yield begins
        if place < len(packs):
            begun = machine.now
            yield costs.learner.pack_s + costs.learner.token_s * pack.tokens
            works[rank] += machine.now - begun


def _decoded_alone(requests: Sequence[Request], setup: Setup, costs: Costs) -> StepTime:
    """Each rank decodes its own, the longest first, then trains."""
    machine, ranks = Machine(setup.cores), dealt(requests, setup)
    for own in ranks:
        longest_first = sorted(enumerate(own), key=lambda one: -one[1].answer)
        owners = at_servers(longest_first, [setup.decode_batch_size])
        machine.start(decode(owners, costs.server, lambda rank, place: None, Tally()))
    rollouts, slowed = machine.run(), _slowed(setup)
    packs = [_offline([one.segment for one in own], setup) for own in ranks]
    trained, mine = _rounds(packs, costs.learner.pack_s, costs.learner.token_s)
    matched = costs.learner.match_s * len(requests) / setup.learners
    around = (_around(setup, costs, len(requests)) + matched) * slowed
    return StepTime(
        whole=around + rollouts + trained * slowed,
        servers_busy=0.0,
        learners_busy=around + rollouts + mine * slowed,
        proof=0.0,
        rollouts=rollouts,
    )

"""Costs and setups by hand, in whole numbers."""

import math
from collections.abc import Sequence
from dataclasses import replace

from ds_stage2ab.simulation.costs import Costs, LearnerCosts, Request, ServerCosts, Setup, TransferCosts
from ds_stage2ab.simulation.decoding import Tally, at_servers, decode
from ds_stage2ab.simulation.machine import Machine

NOTHING = Costs(
    server=ServerCosts(
        pass_s=0.0, row_s=0.0, prompt_token_s=0.0, request_s=0.0, turnaround_s=0.0, tokens_per_pass=1.0
    ),
    transfer=TransferCosts(
        fixed_s=0.0, version_s=0.0, num_bytes=0.0, server_bytes_per_s=math.inf, learner_bytes_per_s=math.inf
    ),
    learner=LearnerCosts(
        sample_s=0.0,
        match_s=0.0,
        pack_s=0.0,
        token_s=0.0,
        a_pack_s=0.0,
        a_token_s=0.0,
        update_s=0.0,
        exchange_bytes=0.0,
        exchange_bytes_per_s=math.inf,
    ),
)
ONE = Setup(
    learners=1, servers=1, decode_batch_size=2, per_device=1, pack_tokens=40, packing=True, cores=None
)


def costs(**changes: float) -> Costs:
    """Nothing costs anything but these: `server_pass_s=1.0`."""
    found = NOTHING
    for name, value in changes.items():
        part, _, key = name.partition("_")
        found = replace(found, **{part: replace(getattr(found, part), **{key: value})})
    return found


def requests(*answers: int, prompt: int = 10, segment: int = 20) -> list[Request]:
    return [Request(prompt=prompt, answer=length, segment=segment, a_segment=segment) for length in answers]


def simulated(lengths: Sequence[int], slots: int) -> tuple[float, float]:
    """Passes, and rows of all of them, of answers of these lengths in this order."""
    machine, tally = Machine(None), Tally()
    owners = at_servers(list(enumerate(requests(*lengths))), [slots])
    machine.start(decode(owners, costs(server_pass_s=1.0).server, lambda rank, place: None, tally))
    machine.run()
    return tally.passes, tally.live

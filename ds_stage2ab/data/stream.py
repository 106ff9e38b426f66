"""Which record belongs to which draw: the order of the data, from numbers alone.

A draw g counts the raw samples of a run; step s owns the draws [sR, (s+1)R). Evaluation counts
downwards from -1. Letters: R samples per step, W learner ranks, p samples per micro-step and rank,
G = R / (p W) micro-steps, N records used per epoch.

Invariants:
- The record of a draw depends on (seed, number of records, N, g) alone: not on W, p or what ran before.
- Within an epoch no record appears twice.
- The draws of all ranks and micro-steps of step s are exactly [sR, (s+1)R), each once.
- Which records an epoch leaves out (where N is a whole number of steps) differs from epoch to epoch.
- Where epochs wrap, N is every record: none is left out, and a step may hold the end of one epoch and the next one's
  beginning.
- No result depends on the platform, the hash seed or a library's random generator.
"""

import hashlib
from dataclasses import replace

from ds_stage2ab.carriers import Record

SAMPLE_DIGEST_BYTES = 16  # two of 10^9 records get the same digest with probability 1.5e-21


def permutation(seed: int, epoch: int, num_records: int) -> list[int]:
    """The order of an epoch: record indices sorted by the digest of "seed/epoch/index".

    Returns: list [num_records], a permutation of 0..num_records-1 made from (seed, epoch) alone.
    """
    return sorted(range(num_records), key=lambda index: (digest_of(f"{seed}/{epoch}/{index}"), index))


def digest_of(text: str) -> bytes:
    """What orders by a seed."""
    return hashlib.blake2b(text.encode(), digest_size=SAMPLE_DIGEST_BYTES).digest()


def epoch_and_place(draw: int, draws_per_epoch: int) -> tuple[int, int]:
    """(e, place in the epoch's order) of a training draw: (g div N, g mod N)."""
    assert draw >= 0, f"draw {draw} is no training draw"
    return divmod(draw, draws_per_epoch)


def draws_of(
    step: int,
    rank: int,
    micro_step: int,
    *,
    effective_batch_size: int,
    num_ranks: int,
    per_device_batch_size: int,
) -> list[int]:
    """The draws of one rank in one micro-step: g = sR + (mW + r)p + j for j = 0..p-1."""
    assert 0 <= rank < num_ranks, f"rank {rank} of {num_ranks}"
    first = step * effective_batch_size + (micro_step * num_ranks + rank) * per_device_batch_size
    last = first + per_device_batch_size
    assert 0 <= step and last <= (step + 1) * effective_batch_size, f"micro-step {micro_step} outside step {step}"
    return list(range(first, last))


def evaluation_draw(index: int) -> int:
    """The draw of held-out sample `index`: g = -1 - index, never a training draw."""
    assert index >= 0, f"index {index}"
    return -1 - index


def shuffled_objects(record: Record, seed: int, draw: int) -> Record:
    """The record with its objects in a random order that depends on the draw (`data.object_order: random`)."""
    digests = [digest_of(f"{seed}/{draw}/{record.id}/{place}") for place in range(len(record.objects))]
    order = sorted(range(len(digests)), key=lambda place: (digests[place], place))
    return replace(record, objects=tuple(record.objects[place] for place in order))


class SampleOrder:
    """Draw -> record index; caches the permutation of the current epoch.

    Args:
        seed: `training.seed`.
        num_records: records of the training file.
        draws_per_epoch: N <= num_records; `RunPlan.num_records_used`, a whole number of steps or all records.
    """

    def __init__(self, seed: int, num_records: int, draws_per_epoch: int) -> None:
        assert 1 <= draws_per_epoch <= num_records, f"{draws_per_epoch} draws of {num_records} records"
        self.draws_per_epoch = draws_per_epoch
        self._seed = seed
        self._num_records = num_records
        self._epoch = -1
        self._order: list[int] = []

    def record_of(self, draw: int) -> int:
        """The index of the record at a training draw (counted from 0)."""
        epoch, place = epoch_and_place(draw, self.draws_per_epoch)
        if epoch != self._epoch:
            self._order = permutation(self._seed, epoch, self._num_records)
            self._epoch = epoch
        return self._order[place]

"""Requests -> answers, at most so many rows at a time; a row that has ended makes room for the next request at once.

Every pass computes all live rows: a token of each answer, and the whole prompts of the requests that were taken in.
So a request takes as many passes as its answer has tokens, the stop among them, and all of them together take as
many as list scheduling of jobs of these lengths (Graham 1969).
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from torch import Tensor

from ds_stage2ab.carriers import Decoding
from ds_stage2ab.errors import TrainingFault, printable
from ds_stage2ab.rollout.decoding.attention import SlotMemory
from ds_stage2ab.rollout.decoding.capture import Captures, Record
from ds_stage2ab.rollout.decoding.choice import Chooser, read
from ds_stage2ab.rollout.decoding.network import Features, image_features, logits_of
from ds_stage2ab.rollout.decoding.passes import PassInputs, make_pass
from ds_stage2ab.rollout.decoding.rows import Request, Row
from ds_stage2ab.runtime.memory import is_out_of_memory

MORE = 4
"""Slots that are too short become longer by a quarter at least: each time they are copied."""
NAMED = 3
"""Samples that a message names."""


class Loop:
    """Decodes with one model and one way of sampling.

    Args:
        model: in eval mode, its attention by slot.
        memory: the slots.
        chooser: of the tokens.
        start: request -> its row.
        record: captures passes; None: all are made in the ordinary form.
    """

    def __init__(
        self,
        model: Any,
        memory: SlotMemory,
        chooser: Chooser,
        start: Callable[[Request], Row],
        record: Record | None = None,
    ) -> None:
        self.model = model
        self.memory = memory
        self.chooser = chooser
        self.start = start
        self.source: Iterator[Request] = iter(())
        self.read: deque[Request] = deque()
        # of it, and still waiting
        self.rows: list[Row] = []
        self.features: dict[int, Features] = {}
        # by the place of the request; of the next ones that wait
        self.passes = self.live = self.columns = self.used = 0
        self.answers = self.tokens = self.drafted = self.accepted = 0
        text = model.config.text_config
        heads_per_key = text.num_attention_heads // text.num_key_value_heads
        self.form = {"device": model.device, "dtype": model.dtype, "heads_per_key": heads_per_key}
        self.captures = None if record is None else Captures(record, memory, **self.form)

    def __call__(self, requests: Iterable[Request], check_stop: Callable[[], None] = lambda: None) -> Iterator[Row]:
        """Each row when it has finished, so in no particular order.

        Args:
            requests: read when slots are free for them, or for their images; never more of them ahead than slots.
            check_stop: called before each pass; may raise.
        """
        self.source = iter(requests)
        try:
            while self._ahead(1) or self.rows:
                check_stop()
                while len(self.rows) < self.memory.num_slots and self._ahead(1):
                    self.rows.append(self._next())
                self._step()
                yield from self._close()
        finally:
            self._drop_captures()

    def _ahead(self, number: int) -> list[Request]:
        """The next requests, so many where there are."""
        self.read.extend(islice(self.source, max(0, number - len(self.read))))
        return list(islice(self.read, number))

    def _next(self) -> Row:
        """The row of the next request, in slots that it fits in."""
        row = self.start(self.read.popleft())
        width, needed = self.memory.width, len(row.request.prompt) + row.max_new_tokens
        if needed > width:
            # it may be followed by longer ones
            wider = max(needed, width + width // MORE)
            self.memory.widen(wider)
            self.chooser.widen(wider)
            self._drop_captures()
        return row

    def _step(self) -> None:
        """One pass of all rows."""
        answering = [slot for slot, row in enumerate(self.rows) if row.num_cached]
        new = [slot for slot, row in enumerate(self.rows) if not row.num_cached]
        with self._memory_explained(new):
            chosen = read(self._told(new))
        first = 0
        for slot in (*answering, *new):
            row = self.rows[slot]
            places = slice(first, first + len(row.draft) + 1)
            if not all(chosen.is_finite[places]):
                raise _not_finite(row)
            num_taken = row.take(chosen.ids[places])
            if chosen.log_probs is not None:
                row.log_probs += chosen.log_probs[places][:num_taken]
                row.masses += chosen.masses[places][:num_taken]
            first = places.stop

    def _told(self, new: Sequence[int]) -> Tensor:
        """What is chosen in a pass of all rows, of which these have prompts in it."""
        captured = None if self.captures is None else self.captures(self.rows, self._run)
        if captured is not None:
            shape, told = captured
            self._count(shape.columns * self.memory.num_slots)
            return told
        inputs = make_pass(self.rows, self.memory, **self.form)
        features = [self._features_of(self.rows[slot].request) for slot in new]
        told = self._run(inputs, features)
        self._count(None if inputs.slots.mask is None else inputs.slots.columns * len(self.rows))
        return told

    def _run(self, inputs: PassInputs, features: Sequence[Features] = ()) -> Tensor:
        return self.chooser(logits_of(self.model, inputs, features), inputs)

    def _drop_captures(self) -> None:
        if self.captures is not None:
            self.captures.clear()

    @contextmanager
    def _memory_explained(self, new: Sequence[int]) -> Iterator[None]:
        """Where memory runs out, says in which pass; the keys that reduce it are the caller's to name."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            names = ", ".join(printable(self.rows[slot].request.sample.id) for slot in new[:NAMED])
            prompts = f" and the prompts of {len(new)} samples ({names})" if new else ""
            raise MemoryError(f"in a pass of {len(self.rows) - len(new)} answers{prompts}") from error

    def _count(self, columns: int | None) -> None:
        """Args: columns: of slots, that the pass reads; None: as many as it needs."""
        self.passes += 1
        self.live += len(self.rows)
        used = sum(row.num_cached and row.num_cached + 1 + len(row.draft) for row in self.rows)
        self.used += used
        self.columns += used if columns is None else columns

    def _count_answer(self, row: Row) -> None:
        self.answers += 1
        self.tokens += len(row.ids) + (row.finish == "stop")
        self.drafted += row.num_drafted
        self.accepted += row.num_accepted

    def decoding(self) -> Decoding:
        """What it took to decode the rows that have finished."""
        return Decoding(
            answers=self.answers,
            tokens=self.tokens,
            passes=self.passes,
            live=self.live,
            slots=self.passes * self.memory.num_slots,
            drafted=self.drafted,
            accepted=self.accepted,
            columns=self.columns,
            padding=self.columns - self.used,
        )

    def _features_of(self, request: Request) -> Features:
        """Of its images; those of the requests that wait behind it are computed in the same pass of the tower."""
        if request.place not in self.features:
            coming = [row.request for row in self.rows if not row.num_cached and row.request.place not in self.features]
            room = self.memory.num_slots - len(coming)
            ahead = [*coming, *self._ahead(room)]
            found = image_features(self.model, [one.sample for one in ahead])
            self.features |= {one.place: own for one, own in zip(ahead, found, strict=True)}
        return self.features.pop(request.place)

    def _close(self) -> list[Row]:
        """Take out the rows that have ended: the next request takes the slot, or else the last row does."""
        finished = []
        for slot in reversed(range(len(self.rows))):
            row = self.rows[slot]
            if row.finish is None:
                continue
            finished.append(row)
            self._count_answer(row)
            if self._ahead(1):
                self.rows[slot] = self._next()
                continue
            last = self.rows.pop()
            if last is not row:
                self.rows[slot] = last
                self.memory.move(len(self.rows), slot, last.num_cached)
                self.chooser.move(len(self.rows), slot)
        return finished


def _not_finite(row: Row) -> TrainingFault:
    return TrainingFault(
        f"the model's logits are not finite after {len(row.ids)} tokens of an answer",
        where=f"sample {printable(row.request.sample.id)}",
        fix="lower training.learning_rate, and look at this sample; if it is the first step, at the checkpoint",
    )


def started(request: Request, **settings: Any) -> Row:
    """A row without an answer yet."""
    next_position = int(request.position_ids.max()) + 1
    row = Row(request=request, started=time.monotonic(), offset=next_position - len(request.prompt), **settings)
    row.propose(())
    return row

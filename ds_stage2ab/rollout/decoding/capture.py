"""Passes of answers alone as CUDA graphs: one launch replays the work that the host would launch kernel by kernel.

A shape (`static.py`) that has come a few times is captured: its work is recorded on a pass of no rows at all, which
touches the line that nobody reads, and then replayed on the pass at hand, whose result is known by then from the same
work done in the ordinary way. So a number of the host that was recorded along shows at once, as a difference, and has
done no harm. Where a capture fails or differs, nothing is captured from then on, and a warning says why.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ds_stage2ab.rollout.decoding.attention import SlotMemory
from ds_stage2ab.rollout.decoding.passes import PassInputs
from ds_stage2ab.rollout.decoding.rows import Row
from ds_stage2ab.rollout.decoding.static import Shape, numbers_of, shape_of, static_inputs

ORDINARY = 7
"""Passes of a shape before it is captured: a capture takes as long as some five, so none is made for a rare shape."""
WARM_UP = 2
"""Rounds before a capture, in which libraries choose their algorithms and take their workspaces."""
CLOSE = 1e-2
"""Most that log-probabilities and masses may differ from those of the same kernels launched one by one."""

Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
"""Work -> (what does it again on the same memory, its result, which lies in the same place each time)."""
Run = Callable[[PassInputs], Tensor]
"""A pass -> what is chosen, by work on tensors alone."""


class CudaGraphs:
    """Records work on the current CUDA device; the graphs share their memory, so one is replayed at a time."""

    def __init__(self) -> None:
        self.stream: Any = None
        self.pool: Any = None

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        if self.stream is None:
            self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        self._warm_up(work)
        graph = torch.cuda.CUDAGraph()
        # other threads, as the one that watches NCCL, may go on asking the device
        settings = {"pool": self.pool, "stream": self.stream, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(graph, **settings):
            result = work()
        return graph.replay, result

    def _warm_up(self, work: Callable[[], Tensor]) -> None:
        """On the stream of the capture; what waits for the host raises here, as a capture that fails leaves traces."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream), _waiting_refused():
            for _ in range(WARM_UP):
                work()
        torch.cuda.current_stream().wait_stream(self.stream)


@contextmanager
def _waiting_refused() -> Iterator[None]:
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


RECORDERS: dict[str, Callable[[], Record]] = {"cuda": CudaGraphs}
"""By the type of the device: who records the passes of one decoding."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Captured:
    """A shape's graph."""

    numbers: Tensor
    # what it reads
    replay: Callable[[], None]
    told: Tensor
    # what it writes

    def __call__(self, numbers: Tensor) -> Tensor:
        self.numbers.copy_(numbers)
        self.replay()
        return self.told


class Captures:
    """The graphs of one decoding; they hold addresses, so they end with the weights and the slots.

    Args:
        record: records one graph.
        memory: the slots.
        device, dtype: of the model.
        heads_per_key: query heads that share a key head.
    """

    def __init__(
        self,
        record: Record,
        memory: SlotMemory,
        *,
        device: torch.device,
        dtype: torch.dtype,
        heads_per_key: int,
    ) -> None:
        self.record = record
        self.memory = memory
        self.device = device
        self.form = {"dtype": dtype, "heads_per_key": heads_per_key}
        self.seen: Counter[Shape] = Counter()
        self.graphs: dict[Shape, Captured] = {}
        self.failed = False

    def clear(self) -> None:
        """To be called where weights or slots go, or move."""
        self.graphs.clear()

    def __call__(self, rows: Sequence[Row], run: Run) -> tuple[Shape, Tensor] | None:
        """(shape, what is chosen) of the next pass; None: it is to be made in the ordinary form."""
        shape = None if self.failed else shape_of(rows, self.memory)
        if shape is None:
            return None
        self.seen[shape] += 1
        graph = self.graphs.get(shape)
        if graph is None and self.seen[shape] <= ORDINARY:
            return None
        numbers = numbers_of(rows, shape, self.memory)
        return shape, self._first(shape, numbers, run) if graph is None else graph(numbers)

    def _first(self, shape: Shape, numbers: Tensor, run: Run) -> Tensor:
        """The result of a pass that is made, captured, and then replayed to be compared."""
        buffer = numbers.to(self.device, copy=True)

        def work() -> Tensor:
            return run(static_inputs(buffer, shape, self.memory, **self.form))

        expected = work()
        try:
            buffer.copy_(numbers_of([], shape, self.memory))
            replay, told = self.record(work)
            graph = Captured(numbers=buffer, replay=replay, told=told)
            differs = not _same(graph(numbers), expected)
        except RuntimeError as error:
            self._give_up(str(error).partition("\n")[0])
            return expected
        if differs:
            self._give_up(f"a graph of {shape} chose other tokens than the same pass without it")
            buffer.copy_(numbers)
            return work()  # the keys and values again
        self.graphs[shape] = graph
        return expected

    def _give_up(self, why: str) -> None:
        self.failed = True
        self.clear()
        warnings.warn(
            f"passes of decoding are not captured, each kernel is launched by itself: {why}",
            RuntimeWarning,
            stacklevel=2,
        )


def _same(told: Tensor, expected: Tensor) -> bool:
    """Of what a chooser tells: tokens, sums that only say what is finite, and probabilities where they are recorded."""
    return bool(
        torch.equal(told[0], expected[0])
        and torch.equal(told[1].isfinite(), expected[1].isfinite())
        and torch.allclose(told[2:], expected[2:], rtol=0, atol=CLOSE, equal_nan=True)
    )

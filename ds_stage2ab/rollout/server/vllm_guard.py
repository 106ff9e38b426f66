"""Inside a vLLM server: draws as the learner makes them, and the repetition guard.

vLLM finds `Guard` by the entry point in pyproject.toml. A request says in `vllm_xargs` whether it is drawn here and
which rules hold for it; for one that says nothing, nothing is done. A row that is drawn is left its token alone, so the
server's own sampling, which comes later, has no choice. A row that breaks a rule can only stop, and its place is free
again; the learner looks at every answer again, so that saves time and decides nothing. A server that decodes ahead of
itself (speculatively) goes without both: the older runner leaves out what plugins add
(`vllm.v1.sample.logits_processor.build_logitsprocs`), and in a step with drafts the newer one is given rows that are no
requests. The handshake refuses such a server where answers are drawn.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate
from vllm.v1.sample.logits_processor import LogitsProcessor as OldLogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcessor, LogitsProcRequestState

from ds_stage2ab import ops
from ds_stage2ab.rollout.draws import DRAWN_HERE
from ds_stage2ab.rollout.repeat_guard import GuardParams, repeats


@dataclass(frozen=True, slots=True)
class Drawn:
    """How a request is drawn."""

    limits: tuple[float, int, float]
    # temperature, top_k, top_p
    seed: int

    @classmethod
    def read(cls, params: SamplingParams) -> "Drawn | None":
        """None if it is greedy, or drawn by the server itself."""
        if not params.temperature or params.seed is None or DRAWN_HERE not in (params.extra_args or {}):
            return None
        return cls((params.temperature, max(params.top_k, 0), params.top_p), params.seed)


def draw(logits: Tensor, rows: Mapping[int, tuple[Drawn, int]]) -> None:
    """Leave these rows of the logits [B, V] their draws alone, in place: row -> how it is drawn, and at which place.

    Requests of one run have the same limits, so this is one call of the op for all of them.
    """
    for limits in {how.limits for how, _ in rows.values()}:
        alike = [(row, how.seed, place) for row, (how, place) in rows.items() if how.limits == limits]
        rows_R, seeds_R, places_R = (_on(logits.device, part) for part in zip(*alike, strict=True))
        drawn_R = ops.sample_tokens(logits[rows_R].float(), *limits, seeds_R, places_R)
        logits[rows_R] = -torch.inf
        logits[rows_R, drawn_R] = 0.0


def _on(device: torch.device, values: Iterable[int]) -> Tensor:
    """On the device, without waiting for what runs there."""
    here = torch.tensor([*values])
    return here if device.type == "cpu" else here.pin_memory().to(device, non_blocking=True)


class Guard(LogitsProcessor):
    """For the newer of vLLM's two model runners, which keeps the ids on the device; nothing here waits for them.

    Either runner loads what the one entry point names. The newer refuses a class that is not of its own kind; the
    older takes any, and builds it with one argument more: it gets an `OldGuard`.

    Args:
        config: vLLM's.
        states: the ids of all requests, by slot.
    """

    def __new__(cls, config: Any, *place: Any) -> Any:
        return super().__new__(cls) if len(place) == 1 else OldGuard(config, *place)

    def __init__(self, config: Any, states: LogitsProcRequestState) -> None:
        self.states = states
        self.drawn: dict[int, Drawn] = {}
        self.watched: dict[int, tuple[GuardParams, Tensor]] = {}
        # slot -> what holds for its request, coordinate ids on the device

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Whether anything is done for this request; a slot is used again, by requests that may want nothing."""
        self.watched.pop(req_idx, None)
        self.drawn.pop(req_idx, None)
        drawn, params = Drawn.read(sampling_params), GuardParams.read(sampling_params.extra_args)
        if drawn is not None:
            self.drawn[req_idx] = drawn
        if params is not None:
            ids = torch.tensor(params.coordinate_ids, dtype=torch.int32, device=self.states.device)
            self.watched[req_idx] = params, ids
        return drawn is not None or params is not None

    def apply(self, logits: Tensor, ctx: LogitsContext) -> Tensor:
        """Change the rows of one step in place; with drafts a request would have several.

        Penalties and forbidden ids were applied before; temperature, top k and top p come after.
        """
        slots = ctx.idx_mapping_np.tolist()
        if len(logits) != len(slots):
            return logits
        lengths = [int(self.states.prompt_len.np[slot]) for slot in slots]
        # of a prompt that is read in parts the earlier ones have no place in the answer, and are not sampled
        places = [max(0, int(last) - first) for first, last in zip(lengths, ctx.seq_lens_upper_bound_np, strict=True)]
        draw(logits, {row: (self.drawn[slot], places[row]) for row, slot in enumerate(slots) if slot in self.drawn})
        for row, slot in enumerate(slots):
            if slot not in self.watched:
                continue
            params, coordinate_ids = self.watched[slot]
            generated_1L = self.states.all_token_ids.gpu[slot : slot + 1, lengths[row] : lengths[row] + places[row]]
            broken_1 = repeats(generated_1L, coordinate_ids, params.limits, params.per_object)
            logits[row].masked_fill_(broken_1, -torch.inf)
            logits[row, params.stop_id].masked_fill_(broken_1[0], 0.0)
        return logits


class OldGuard(OldLogitsProcessor):
    """For the older model runner, the only one on CPUs, which keeps the ids as lists."""

    def __init__(self, config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.rows: dict[int, Request] = {}

    def is_argmax_invariant(self) -> bool:
        """Whether greedy requests may go without."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Requests come, go and move."""
        process_dict_updates(self.rows, batch_update, Request.read)

    def apply(self, logits: Tensor) -> Tensor:
        """Change the logits of one step in place; forbidden ids are at -inf, and penalties come after."""
        drawn = {row: one for row, one in self.rows.items() if one.drawn is not None}
        for row, one in drawn.items():
            one.penalise(logits[row])
        draw(logits, {row: (one.drawn, len(one.output_ids)) for row, one in drawn.items()})
        for row, one in self.rows.items():
            if one.is_over():
                logits[row] = -torch.inf
                logits[row, one.guard.stop_id] = 0.0
        return logits


class Request:
    """One request at the older runner.

    Args:
        params: what it asks for.
        prompt_ids: its prompt.
        output_ids: its answer so far, which grows. An id of -1 is on its way from the device and will stand there next
            time.
    """

    def __init__(self, params: SamplingParams, prompt_ids: list[int], output_ids: list[int]) -> None:
        self.drawn = Drawn.read(params)
        self.guard = guard = GuardParams.read(params.extra_args)
        self.detector = guard and guard.detector()
        self.penalty = params.repetition_penalty
        self.prompt_ids = prompt_ids
        self.output_ids = output_ids

    @classmethod
    def read(cls, params: SamplingParams, prompt_ids: list[int] | None, output_ids: list[int]) -> "Request | None":
        """None for one that wants nothing."""
        one = cls(params, prompt_ids or [], output_ids)
        return None if one.drawn is None and one.guard is None else one

    def penalise(self, logits_V: Tensor) -> None:
        """The repetition penalty (Keskar et al. 2019), in place: vLLM's own comes too late for a draw made here."""
        if self.penalty == 1.0:
            return
        ids = torch.tensor([*{*self.prompt_ids, *filter(lambda token: token >= 0, self.output_ids)}])
        ids = ids.to(logits_V.device)
        seen = logits_V[ids]
        logits_V[ids] = torch.where(seen > 0, seen / self.penalty, seen * self.penalty)

    def is_over(self) -> bool:
        """Whether its answer has broken a rule."""
        if self.detector is None:
            return False
        new_ids = self.output_ids[len(self.detector.ids) :]
        return self.detector.read(takewhile(lambda token: token >= 0, new_ids))

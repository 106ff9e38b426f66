"""The repetition guard inside a vLLM server: a row that breaks a rule can only stop, and its place is free again.

vLLM finds `Guard` by the entry point in pyproject.toml. A request says in `vllm_xargs` which rules hold for it; for one
that says nothing, nothing is done. The learner looks at every answer again, so this saves time and decides nothing: a
server that decodes ahead of itself (speculatively) goes without.
"""

from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcessor, LogitsProcRequestState

from ds_stage2ab.rollout.repeat_guard import GuardParams, IncrementalDetector, repeats


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
        self.watched: dict[int, tuple[GuardParams, Tensor]] = {}
        # slot -> what holds for its request, coordinate ids on the device

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Whether this request has rules; a slot is used again, by requests that may have none."""
        self.watched.pop(req_idx, None)
        params = GuardParams.read(sampling_params.extra_args)
        if params is None:
            return False
        ids = torch.tensor(params.coordinate_ids, dtype=torch.int32, device=self.states.device)
        self.watched[req_idx] = params, ids
        return True

    def apply(self, logits: Tensor, ctx: LogitsContext) -> Tensor:
        """Change the rows of one step in place; with drafts a request would have several."""
        slots = ctx.idx_mapping_np.tolist()
        if len(logits) != len(slots):
            return logits
        for row, slot in enumerate(slots):
            if slot not in self.watched:
                continue
            params, coordinate_ids = self.watched[slot]
            first, last = int(self.states.prompt_len.np[slot]), int(ctx.seq_lens_upper_bound_np[row])
            generated_1L = self.states.all_token_ids.gpu[slot : slot + 1, first:last]
            broken_1 = repeats(generated_1L, coordinate_ids, params.limits)
            logits[row].masked_fill_(broken_1, -torch.inf)
            logits[row, params.stop_id].masked_fill_(broken_1[0], 0.0)
        return logits


class OldGuard(AdapterLogitsProcessor):
    """For the older model runner, the only one on CPUs, which keeps the ids as lists."""

    def is_argmax_invariant(self) -> bool:
        """Whether greedy requests may go without."""
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> "Ending | None":
        """What ends one request; None where no rule holds."""
        params = GuardParams.read(params.extra_args)
        return None if params is None else Ending(params)


class Ending:
    """Forces the stop on one answer as soon as it breaks a rule."""

    def __init__(self, params: GuardParams) -> None:
        self.stop_id = params.stop_id
        self.detector = IncrementalDetector(params.limits, frozenset(params.coordinate_ids))

    def __call__(self, output_ids: list[int], logits_V: Tensor) -> Tensor:
        """Change the logits in place. An id of -1 is on its way from the device and will stand there next time."""
        new_ids = output_ids[len(self.detector.ids) :]
        if self.detector.read(takewhile(lambda token: token >= 0, new_ids)):
            logits_V.fill_(-torch.inf)
            logits_V[self.stop_id] = 0.0
        return logits_V

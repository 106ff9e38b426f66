"""Runs in the vLLM server's environment: the guard under both model runners, driven as they drive it.

Prints a JSON object: case -> for each step of a batch, the rows that can only stop. Rows that can do more must be as
they were before.
"""

import json
from types import SimpleNamespace

import numpy as np
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState
from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs_plugins

from ds_stage2ab.config.sections import RepeatTerminateSection
from ds_stage2ab.rollout.repeat_guard import GuardParams
from ds_stage2ab.rollout.server.vllm_guard import Guard

NO_LIMITS = {"max_token_run": None, "ngram_size": None, "max_ngram_repeats": None, "max_objects": None}
WIDTH, STOP = 12, 3
SLOTS, LONGEST = 4, 16


def asking(**limits) -> SamplingParams:
    params = GuardParams(
        limits=RepeatTerminateSection(**{**NO_LIMITS, **limits}), stop_id=STOP, coordinate_ids=(8, 9)
    )  # fmt: skip
    return SamplingParams(extra_args={"session_id": "another's", **params.arguments()})


PLAIN = SamplingParams()
RUN = asking(max_token_run=2)


def ended(logits: torch.Tensor) -> list[int]:
    """Rows that can only stop."""
    before = torch.arange(float(WIDTH)).repeat(len(logits), 1)
    forced = torch.full((WIDTH,), -torch.inf).index_fill(0, torch.tensor([STOP]), 0.0)
    rows = [row for row, scores in enumerate(logits) if torch.equal(scores, forced)]
    others = [row for row in range(len(logits)) if row not in rows]
    assert torch.equal(logits[others], before[others])
    return rows


def fresh(num_rows: int) -> torch.Tensor:
    return torch.arange(float(WIDTH)).repeat(num_rows, 1)


# --- the older runner: rows that come, go and move, ids in lists ----------------------------------------------------


def old_batches() -> list[list[int]]:
    guard = Guard(SimpleNamespace(), torch.device("cpu"), False)
    assert not guard.is_argmax_invariant()
    a, b, c = [5, 7, 7], [7, 7, 7], [7]  # b has no rules; c breaks one a token later
    steps = []

    def step(num_rows, removed=(), added=(), moved=()):
        changes = BatchUpdate(batch_size=num_rows, removed=[*removed], added=[*added], moved=[*moved])
        guard.update_state(changes if removed or added or moved else None)
        steps.append(ended(guard.apply(fresh(num_rows))))

    step(3, added=[(0, RUN, [7], a), (1, PLAIN, [7], b), (2, RUN, [7, 7], c)])
    c.append(7)
    step(3)
    step(2, removed=[0], moved=[(2, 0, MoveDirectionality.UNIDIRECTIONAL)])
    step(2, moved=[(0, 1, MoveDirectionality.SWAP)])
    step(2, added=[(1, PLAIN, [7], [7, 7])])
    step(3, added=[(2, asking(max_objects=1), [8], [8, 9, 8, 1, 9])])
    step(3, added=[(2, asking(max_objects=1), [8], [8, 9, 8, 1, 9, 8])])  # taken up again after it was put off
    return steps


def old_ids_on_their_way() -> list[list[int]]:
    guard = Guard(SimpleNamespace(), torch.device("cpu"), False)
    ids = [7, -1]
    guard.update_state(BatchUpdate(batch_size=1, removed=[], added=[(0, RUN, None, ids)], moved=[]))
    steps = []
    for later in ([7, -1], [7, 7], [7, 7, -1]):
        ids[:] = later
        steps.append(ended(guard.apply(fresh(1))))
    return steps


# --- the newer runner: slots that are used again, ids on the device -------------------------------------------------


def new_batches() -> list[list[int]]:
    ids = torch.zeros(SLOTS, LONGEST, dtype=torch.int32)
    prompts = np.zeros(SLOTS, dtype=np.int32)
    states = LogitsProcRequestState(
        device=torch.device("cpu"), max_num_reqs=SLOTS, vocab_size=WIDTH, all_token_ids=SimpleNamespace(gpu=ids),
        prompt_len=SimpleNamespace(np=prompts), prefill_len=None, total_len=None,
    )  # fmt: skip
    guard, steps = Guard(SimpleNamespace(), states), []

    def begin(slot, params, prompt):
        prompts[slot] = len(prompt)
        ids[slot, : len(prompt)] = torch.tensor(prompt)
        return guard.add_request(slot, params)

    def step(written, num_rows=None):
        """`written`: slot -> everything behind the prompt."""
        slots = np.array([*written])
        for slot, generated in written.items():
            ids[slot, prompts[slot] : prompts[slot] + len(generated)] = torch.tensor(generated)
        lengths = np.array([prompts[slot] + len(generated) for slot, generated in written.items()])
        layout = LogitsContext(
            expanded_idx_mapping=torch.tensor(slots), idx_mapping=torch.tensor(slots), idx_mapping_np=slots,
            expanded_local_pos=None, input_ids=None, pos=None, seq_lens_upper_bound_np=lengths,
        )  # fmt: skip
        steps.append(ended(guard.apply(fresh(num_rows or len(slots)), layout)))

    assert begin(2, RUN, [7, 7, 7]) and begin(0, asking(ngram_size=2, max_ngram_repeats=2), [5])
    assert not begin(1, PLAIN, [7])
    step({0: [], 1: [7, 7], 2: []})
    step({2: [7, 7], 1: [7, 7, 7], 0: [5, 6, 5]})
    step({2: [7, 7], 0: [5, 6, 5, 6]})
    step({2: [7, 7], 0: [5, 6, 5, 6]}, num_rows=4)  # drafts
    assert not begin(2, PLAIN, [7])
    step({2: [7, 7]})
    assert begin(2, asking(max_objects=1), [8, 8])
    step({2: [8, 9, 8, 9]})
    step({2: [8, 9, 8, 9, 1, 9]})
    return steps


def loaded() -> list[str]:
    """What the newer runner finds by the entry points; it refuses classes that are not of its kind."""
    return [found.__name__ for found in _load_v2_logitsprocs_plugins()]


if __name__ == "__main__":
    cases = (old_batches, old_ids_on_their_way, new_batches, loaded)
    print(json.dumps({case.__name__: case() for case in cases}))

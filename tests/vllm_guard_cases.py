"""Runs in the vLLM server's environment: the guard and our draws under both model runners, driven as they drive it.

Prints a JSON object: case -> for each step of a batch, the rows that can only stop; of the draws, the token that each
row is left. Other rows must be as they were before.
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
from ds_stage2ab.rollout.draws import DRAWN_HERE
from ds_stage2ab.rollout.repeat_guard import GuardParams
from ds_stage2ab.rollout.server.vllm_guard import Guard

NO_LIMITS = {"max_token_run": None, "ngram_size": None, "max_ngram_repeats": None, "max_objects": None}
WIDTH, STOP = 12, 3
SLOTS, LONGEST = 4, 16


def asking(**limits) -> SamplingParams:
    params = GuardParams(
        limits=RepeatTerminateSection(**{**NO_LIMITS, **limits}), stop_id=STOP, coordinate_ids=(8, 9), per_object=4
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


def new_guard() -> tuple[Guard, torch.Tensor, np.ndarray]:
    """With the ids of all slots, and the lengths of their prompts."""
    ids = torch.zeros(SLOTS, LONGEST, dtype=torch.int32)
    prompts = np.zeros(SLOTS, dtype=np.int32)
    states = LogitsProcRequestState(
        device=torch.device("cpu"), max_num_reqs=SLOTS, vocab_size=WIDTH, all_token_ids=SimpleNamespace(gpu=ids),
        prompt_len=SimpleNamespace(np=prompts), prefill_len=None, total_len=None,
    )  # fmt: skip
    return Guard(SimpleNamespace(), states), ids, prompts


def layout_of(slots: list[int], lengths: list[int]) -> LogitsContext:
    mapping = torch.tensor(slots)
    return LogitsContext(
        expanded_idx_mapping=mapping, idx_mapping=mapping, idx_mapping_np=mapping.numpy(), expanded_local_pos=None,
        input_ids=None, pos=None, seq_lens_upper_bound_np=np.array(lengths),
    )  # fmt: skip


def new_batches() -> list[list[int]]:
    guard, ids, prompts = new_guard()
    steps = []

    def begin(slot, params, prompt):
        prompts[slot] = len(prompt)
        ids[slot, : len(prompt)] = torch.tensor(prompt)
        return guard.add_request(slot, params)

    def step(written, num_rows=None):
        """`written`: slot -> everything behind the prompt."""
        for slot, generated in written.items():
            ids[slot, prompts[slot] : prompts[slot] + len(generated)] = torch.tensor(generated)
        layout = layout_of([*written], [prompts[slot] + len(generated) for slot, generated in written.items()])
        steps.append(ended(guard.apply(fresh(num_rows or len(written)), layout)))

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


# --- draws ----------------------------------------------------------------------------------------------------------


def drawing(seed: int, **changes) -> SamplingParams:
    settings = {"temperature": 1.0, "extra_args": {DRAWN_HERE: 1}, **changes}
    return SamplingParams(seed=seed, **settings)


ONE, OTHER = drawing(11), drawing(2**63 - 1, temperature=0.5, top_k=6, top_p=0.9)
NOT_HERE = [PLAIN, drawing(5, extra_args=None), drawing(5, temperature=0.0), drawing(None)]


def left(logits: torch.Tensor) -> list[int]:
    """The token that each row is left; -1 for a row that is as it was."""
    tokens = []
    for scores in logits:
        only = torch.full((WIDTH,), -torch.inf).index_fill(0, scores.argmax(), 0.0)
        assert torch.equal(scores, only) or torch.equal(scores, fresh(1)[0] / 4)
        tokens.append(int(scores.argmax()) if torch.equal(scores, only) else -1)
    return tokens


def old_draws() -> list[list[int]]:
    guard, steps = Guard(SimpleNamespace(), torch.device("cpu"), False), []
    answers = [[], [1, 2, -1], []]
    added = [(row, params, [7], answers[row]) for row, params in enumerate((ONE, OTHER, drawing(11)))]
    added += [(row, params, [7], []) for row, params in enumerate(NOT_HERE, start=3)]
    guard.update_state(BatchUpdate(batch_size=7, removed=[], added=added, moved=[]))
    for _ in range(4):
        steps.append(left(guard.apply(fresh(7) / 4)))
        answers[0].append(1)
        answers[1].append(1)
    return steps


def new_draws() -> list[list[int]]:
    guard, _, prompts = new_guard()
    prompts[:] = 3
    wanted = [guard.add_request(slot, params) for slot, params in enumerate((ONE, OTHER, drawing(11), NOT_HERE[1]))]
    assert wanted == [True, True, True, False]
    # slots 3, 0, 1, 2; slot 2 has read its prompt in part and then whole
    lengths = [[3, 3, 6, 2], [4, 4, 7, 3], [5, 5, 8, 3], [6, 6, 9, 3]]
    return [left(guard.apply(fresh(4) / 4, layout_of([3, 0, 1, 2], each))) for each in lengths]


def old_draws_under_a_penalty() -> list[list[int]]:
    """Of the ids 0 to 11 with scores 0 to 11 only those of prompt and answer lose: 11 / 1.5 = 7.3 and so on."""
    guard = Guard(SimpleNamespace(), torch.device("cpu"), False)
    params = drawing(3, top_k=1, repetition_penalty=1.5)
    guard.update_state(BatchUpdate(batch_size=1, removed=[], added=[(0, params, [11, 11], [9, -1])], moved=[]))
    negative = fresh(1) - 20  # -9 becomes -13.5, and so on
    return [guard.apply(scores).argmax(1).tolist() for scores in (fresh(1), negative)]


def drawn_and_over() -> list[list[int]]:
    """A rule wins over a draw."""
    guard = Guard(SimpleNamespace(), torch.device("cpu"), False)
    params = drawing(1, extra_args={DRAWN_HERE: 1, **RUN.extra_args})
    guard.update_state(BatchUpdate(batch_size=1, removed=[], added=[(0, params, [7], [5, 5])], moved=[]))
    return [ended(guard.apply(fresh(1)))]


def loaded() -> list[str]:
    """What the newer runner finds by the entry points; it refuses classes that are not of its kind."""
    return [found.__name__ for found in _load_v2_logitsprocs_plugins()]


if __name__ == "__main__":
    cases = (
        old_batches, old_ids_on_their_way, new_batches, old_draws, new_draws, old_draws_under_a_penalty,
        drawn_and_over, loaded,
    )  # fmt: skip
    print(json.dumps({case.__name__: case() for case in cases}))

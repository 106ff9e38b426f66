"""No test file costs more than its budget, and all together fit into what CI may take.

Held against `tests/costs.json`, which `make costs` measures: CPU seconds of all processes, so that a busy machine does
not matter. A file that is not in it yet has not been measured: run `make costs` and commit what it wrote.
"""

import pytest

from tests.architecture.sources import ROOT
from tests.workers import recorded_costs

BUDGET_CPU_S = 30
BUDGETS = {
    # a vLLM server, and runs that use it
    "tests/contract/test_backends.py": 175,
    "tests/test_launch_with_a_server.py": 110,
    "tests/test_stage2_ab_vllm_server_mode_smoke.py": 200,
    "tests/test_vllm_guard.py": 85,
    # many runs of two ranks
    "tests/equivalence/test_same_run.py": 170,
    "tests/faults/test_bad_starts.py": 42,
    "tests/faults/test_launcher.py": 40,
    "tests/faults/test_lost_ranks.py": 100,
    "tests/faults/test_no_compiler.py": 36,
    "tests/test_evaluate.py": 36,
    "tests/test_keyed.py": 56,
    "tests/test_replay.py": 36,
    "tests/test_stage2_ab_training.py": 60,
    "tests/unit/engine/test_window_ranks.py": 50,
    "tests/unit/runtime/test_ranks.py": 36,
    # processes that import for themselves
    "tests/unit/data/test_feed.py": 80,
    "tests/unit/engine/test_whole_model.py": 52,
}
ALL_CPU_S = 1850
"""Two cores have as many in 15.4 minutes."""
COSTS = recorded_costs()


def over_budget(costs: dict[str, dict[str, float]]) -> list[str]:
    budgets = {file: BUDGETS.get(file, BUDGET_CPU_S) for file in costs}
    return [
        f"{file}: {cost['cpu_s']} CPU seconds, at most {budgets[file]}"
        for file, cost in costs.items()
        if cost["cpu_s"] > budgets[file]
    ]


def test_every_file_keeps_its_budget():
    assert over_budget(COSTS) == []


def test_all_together_fit():
    assert sum(cost["cpu_s"] for cost in COSTS.values()) <= ALL_CPU_S


def test_what_is_recorded_exists():
    assert [file for file in (*COSTS, *BUDGETS) if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize(("cpu_s", "found"), [(BUDGET_CPU_S, 0), (BUDGET_CPU_S + 0.1, 1)])
def test_a_file_above_its_budget_is_found(cpu_s, found):
    assert len(over_budget({"tests/x.py": {"cpu_s": cpu_s, "wall_s": 1.0}})) == found

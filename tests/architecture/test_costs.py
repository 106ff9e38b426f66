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
    "tests/contract/test_backends.py": 88,
    "tests/test_launch_with_a_server.py": 76,
    "tests/test_servers_come_and_go.py": 80,
    "tests/test_stage2_ab_vllm_server_mode_smoke.py": 55,
    "tests/test_vllm_guard.py": 45,
    # many runs of two ranks
    "tests/equivalence/test_same_run.py": 95,
    "tests/faults/test_lost_ranks.py": 45,
    "tests/faults/test_launcher.py": 40,
    "tests/faults/test_resume.py": 90,
    "tests/test_keyed.py": 46,
    "tests/unit/engine/test_accumulation.py": 36,
    "tests/test_stage2_ab_training.py": 38,
}
ALL_CPU_S = 1240
"""Two cores have as many in 9.8 minutes; waiting for one another takes the rest of 12."""
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

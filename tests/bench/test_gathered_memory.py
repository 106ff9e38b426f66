"""Host memory that lending the whole model takes under ZeRO 3: one copy of the weights, and a tensor on its way."""

import json

import pytest

from tests.parts import config_values, launch_script, merged, write_config

RANKS = 2
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "1000000"}  # bytes
ON_THE_WAY = 2  # of the largest tensor: as it is gathered, and its copy
SLACK = 24 * 2**20  # bytes: small tensors, Gloo, and what the allocator keeps for itself


@pytest.mark.bench
def test_lending_the_whole_model_takes_one_copy_and_a_tensor(quickstart, tmp_path, capsys):
    values = merged(config_values(quickstart, tmp_path, "gathered"), {"deepspeed.zero_stage": 3})
    config = write_config(tmp_path / "c.yaml", values)
    words = ("tests/bench/gathered_memory.py", str(config), str(tmp_path))
    done = launch_script(*words, ranks=RANKS, environment=GIVEN_BACK)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for rank in range(RANKS):
        seen = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        with capsys.disabled():
            print(f"\nrank {rank}, MiB: " + ", ".join(f"{name} {size / 2**20:.1f}" for name, size in seen.items()))
        assert seen["weights"] > 10 * (ON_THE_WAY * seen["largest"] + SLACK), "a second copy would show"
        assert 0.9 * seen["weights"] < seen["gathered"], "the weights are there"
        assert seen["peak"] < seen["weights"] + ON_THE_WAY * seen["largest"] + SLACK
        assert seen["left"] < ON_THE_WAY * seen["largest"] + SLACK

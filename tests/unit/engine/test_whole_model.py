"""Two real ranks under ZeRO 3, of which one fails between two gathers: both hear of it, and go on together."""

import json

import pytest
from safetensors.torch import load_file

from ds_stage2ab.errors import EXIT_ENVIRONMENT
from tests.parts import config_values, merged, write_config
from tests.ranks import started
from tests.unit.engine.wide_ranks import LARGE

CHANGES = {"deepspeed.zero_stage": 3, "tuner.type": "lora"}


@pytest.fixture(scope="module")
def made(quickstart, tmp_path_factory):
    """Runs both; gives what each of them saw, and the checkpoints."""

    def run(room, codes):
        folder = tmp_path_factory.mktemp("wide")
        config = write_config(folder / "c.yaml", merged(config_values(quickstart, folder, "wide"), CHANGES))
        places = (str(config), str(quickstart.model), str(folder / "checkpoints"))
        with started(2, "tests/unit/engine/wide_ranks.py", *places, str(room)) as ranks:
            said = [rank.communicate(timeout=180) for rank in ranks]
        assert [rank.returncode for rank in ranks] == codes, said
        return [json.loads(out.splitlines()[-1]) for out, _ in said], folder / "checkpoints"

    return run


@pytest.fixture(scope="module")
def run(made):
    """Rank 0 has room to gather a tensor, and to copy it, and none to merge its layer."""
    return made(2.5, [0, 0])


def test_a_copy_that_fails_is_told_when_all_is_gathered(run):
    (first, second), _ = run
    assert second["gathered"].startswith("RuntimeError: ")
    assert first["gathered"] == f"Stage2Error: rank 1: {second['gathered']}"


def test_the_next_loan_is_whole(run):
    seen, _ = run
    assert [(one["whole"], one["given back"]) for one in seen] == [(True, True)] * 2


def test_an_export_without_memory_is_told_when_all_is_gathered(run):
    """For the merged layers on rank 0, in front of two more gathers and those of the adapters."""
    (kind, own), (told_kind, told) = (one["saved"] for one in run[0])
    assert (kind, told_kind) == ("EnvironmentFault", "EnvironmentFault")
    assert own.startswith("a checkpoint cannot be written: ") and "can't allocate memory" in own
    assert told == f"rank 0: {own}"


def test_the_next_checkpoint_is_whole(run):
    _, checkpoints = run
    assert (checkpoints / "latest").read_text() == "step-000002\n"
    weights = load_file(checkpoints / "step-000002" / "hf" / "model.safetensors")
    assert sum(tensor.nbytes == LARGE for tensor in weights.values()) == 3


def test_a_rank_that_cannot_gather_says_so_and_leaves(made):
    """The other is left inside the gather: no agreement could meet it there."""
    (first, second), _ = made(1.5, [EXIT_ENVIRONMENT] * 2)
    assert first["saved"][0] == "LocalFault"
    assert first["saved"][1].startswith("rank 0: the weights cannot be gathered: ")
    assert second["saved"][0] == "LostRanks"

"""Real ranks: two or three processes with a Gloo group on this machine say what each of them saw."""

import json
import os
import signal
import textwrap
from unittest import mock

import pytest

from ds_stage2ab.runtime.ranks import fill_launcher_variables
from tests.ranks import started

PREAMBLE = """
import datetime, json, os, signal, time
import torch
import torch.distributed as dist
from ds_stage2ab.errors import ConfigError, DataError, LocalFault, exit_code
from ds_stage2ab.runtime.ranks import World

limit = {"timeout": datetime.timedelta(seconds=TIMEOUT_S)}
if BACKEND == "fake":
    import torch.testing._internal.distributed.fake_pg
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), is_master=rank == 0, **limit)
    dist.init_process_group(BACKEND, store=store, rank=rank, world_size=size)
else:
    dist.init_process_group(BACKEND, **limit)
world = World("cpu")

def outcome(error):
    name = type(error).__name__
    if not hasattr(error, "why"):
        return [name, str(error), None, None, exit_code(error)]
    return [name, error.why, error.where, error.fix, exit_code(error)]

def agreed(*failures):
    "Each rank raises its own failure (or none) inside one agreement; what came out of it."
    try:
        with world.raise_together("trying"):
            if failures[world.rank] is not None:
                raise failures[world.rank]
    except Exception as error:
        return outcome(error)
    return None

seen = {}
"""


def ranks(number, program, timeout_s=60, killed=(), backend="gloo"):
    """Run `program` on so many ranks; it fills the dictionary `seen`, which comes back for each that is not killed.

    Args:
        backend: of the training group.
    """
    end = "\nprint(json.dumps(seen))\nif dist.is_initialized():\n    dist.destroy_process_group()\n"
    source = f"TIMEOUT_S, BACKEND = {timeout_s}, {backend!r}\n" + PREAMBLE + textwrap.dedent(program) + end
    with started(number, "-c", source) as processes:
        outputs = [process.communicate(timeout=120) for process in processes]
    codes = [-signal.SIGKILL if rank in killed else 0 for rank in range(number)]
    assert [process.returncode for process in processes] == codes, outputs
    return [json.loads(out.strip().splitlines()[-1]) for (out, _), code in zip(outputs, codes, strict=True) if not code]


@pytest.fixture(scope="module")
def collectives():
    return ranks(
        2,
        """
        seen["who"] = [world.rank, world.size]
        seen["max"] = world.all_reduce_max(3 + 4 * world.rank, -world.rank)
        mine = torch.tensor([1.0 + world.rank, 10.0], dtype=torch.float32)
        total = world.all_reduce_sum(mine)
        seen["sum"] = [total.tolist(), str(total.dtype), mine.tolist()]
        # 2**24 + 1 is no float32
        seen["exact"] = world.all_reduce_sum(torch.tensor([2**24 + world.rank])).tolist()
        seen["gather"] = world.gather({"rank": world.rank, "names": ["a"] * world.rank})
        seen["first"] = world.broadcast_object(f"id of {world.rank}")
        """,
    )


def test_ranks_know_who_they_are(collectives):
    assert [seen["who"] for seen in collectives] == [[0, 2], [1, 2]]


def test_all_reduce_max(collectives):
    # 3 and 7; 0 and -1
    assert [seen["max"] for seen in collectives] == [[7, 0], [7, 0]]


def test_all_reduce_sum_is_in_double_and_leaves_its_argument_alone(collectives):
    # 1 + 2, 10 + 10
    assert collectives[0]["sum"] == [[3.0, 20.0], "torch.float64", [1.0, 10.0]]
    assert collectives[1]["sum"] == [[3.0, 20.0], "torch.float64", [2.0, 10.0]]
    assert [seen["exact"] for seen in collectives] == [[2 * 2**24 + 1]] * 2


def test_gather_is_by_rank_on_every_rank(collectives):
    expected = [{"rank": 0, "names": []}, {"rank": 1, "names": ["a"]}]
    assert [seen["gather"] for seen in collectives] == [expected, expected]


def test_broadcast_object_gives_rank_0s_value(collectives):
    assert [seen["first"] for seen in collectives] == ["id of 0"] * 2


@pytest.fixture(scope="module")
def agreements():
    return ranks(
        3,
        """
        data = DataError("no box", where="train.jsonl:3", fix="add one")
        config = ConfigError("too large", where="training.x", fix="lower it")
        seen["none"] = agreed(None, None, None)
        seen["one"] = agreed(None, data, None)
        seen["uncaught"] = agreed(ValueError("boom"), None, None)
        seen["two"] = agreed(None, config, data)
        seen["uncaught last"] = agreed(None, None, ValueError("boom"))
        seen["afterwards"] = world.all_reduce_max(world.rank)[0]
        """,
    )


def test_without_a_failure_nothing_is_raised(agreements):
    assert [seen["none"] for seen in agreements] == [None] * 3


def test_one_ranks_failure_is_raised_on_all(agreements):
    own = ["DataError", "no box", "train.jsonl:3", "add one", 3]
    told = ["DataError", "rank 1: no box", "train.jsonl:3", "add one", 3]
    assert [seen["one"] for seen in agreements] == [told, own, told]


def test_an_uncaught_error_goes_on_and_is_told_with_its_class(agreements):
    told = ["Stage2Error", "rank 0: ValueError: boom", "", "", 1]
    assert [seen["uncaught"] for seen in agreements] == [["ValueError", "boom", None, None, 1], told, told]


def test_the_lowest_failing_rank_speaks_for_all(agreements):
    own = ["ConfigError", "too large", "training.x", "lower it", 2]
    told = ["ConfigError", "rank 1: too large", "training.x", "lower it", 2]
    assert [seen["two"] for seen in agreements] == [told, own, told]


def test_a_failing_rank_is_heard_wherever_it_is(agreements):
    assert [seen["uncaught last"][0] for seen in agreements] == ["Stage2Error", "Stage2Error", "ValueError"]
    assert agreements[0]["uncaught last"][1] == "rank 2: ValueError: boom"


def test_the_ranks_stay_in_step_after_failures(agreements):
    assert [seen["afterwards"] for seen in agreements] == [2, 2, 2]


def test_flags_travel_with_the_news_of_a_failure():
    flags = """
    with world.raise_together("counting", num_flags=2) as agreed:
        agreed.flags = [world.rank, 7 - world.rank]
    seen["flags"] = agreed.flags
    """
    assert [seen["flags"] for seen in ranks(2, flags)] == [[1, 7]] * 2


def test_a_rank_that_waits_in_vain_names_what_the_others_were_at():
    """Rank 1 never comes to the sum; three seconds are the process group's time-out here."""
    program = """
    world.set_status("sorting the socks")
    if world.rank == 1:
        time.sleep(6)
    else:
        try:
            world.all_reduce_sum(torch.ones(1))
        except Exception as error:
            seen["lost"] = outcome(error)
    """
    first, _ = ranks(2, program, timeout_s=3)
    name, why, where, fix, code = first["lost"]
    assert (name, code) == ("LostRanks", 4)
    assert why.startswith("rank 0 waited for the other ranks in vain: ")
    assert where == "last heard of rank 1: sorting the socks"
    assert "deepspeed.collective_timeout_s" in fix


def test_of_three_the_one_that_hangs_behind_an_agreement_is_named_alone():
    """Rank 1 has come to the sum; rank 0, which holds what each of them was at, stays until it has been asked."""
    program = """
    from ds_stage2ab.runtime.ranks import ASK_TIMEOUT
    with world.raise_together("sorting the socks"):
        pass
    if world.rank == 2:
        time.sleep(8)
    else:
        try:
            world.all_reduce_sum(torch.ones(1))
        except Exception as error:
            seen["lost"] = outcome(error)
        time.sleep(ASK_TIMEOUT.total_seconds())
    """
    *waiting, _ = ranks(3, program, timeout_s=3)
    for rank, seen in enumerate(waiting):
        name, why, where, _, _ = seen["lost"]
        assert name == "LostRanks" and why.startswith(f"rank {rank} waited for the other ranks in vain: ")
        assert where == "last heard of rank 2: what follows sorting the socks"


def test_an_error_of_ones_own_is_not_hidden_by_ranks_that_are_gone():
    """One of ours is said by this rank; anything else goes on as it is, with its traceback."""
    program = """
    world.all_reduce_max(0)
    try:
        with world.raise_together("trying"):
            if world.rank == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            raise DataError("no box", where="train.jsonl:3", fix="add one") if OURS else ValueError("boom")
    except Exception as error:
        seen["error"] = outcome(error)
        seen["says it itself"] = isinstance(error, LocalFault)
        seen["notes"] = getattr(error, "__notes__", [])
    """
    (ours,) = ranks(2, "OURS = True\n" + textwrap.dedent(program), killed=[0])
    assert ours["error"] == ["LocalFault", "rank 1: no box", "train.jsonl:3", "add one", 4] and ours["says it itself"]
    (other,) = ranks(2, "OURS = False\n" + textwrap.dedent(program), killed=[0])
    assert other["error"] == ["ValueError", "boom", None, None, 1]
    (note,) = other["notes"]
    assert note.startswith("rank 1 could not tell the others: ") and "rank 1 waited for the other ranks in vain" in note


def test_a_first_rank_that_is_stopped_is_not_waited_for():
    """Its store takes questions and never answers. Rank 1 waits 3 s for the sum and 2 s for what rank 0 was at."""
    program = """
    pid = world.broadcast_object(os.getpid())
    if world.rank == 0:
        os.kill(pid, signal.SIGSTOP)
    else:
        start = time.monotonic()
        try:
            with world.raise_together("trying"):
                pass
        except Exception as error:
            seen["lost"] = outcome(error)
        world.set_status("this and that")  # nor is it told any more
        seen["seconds"] = time.monotonic() - start
        os.kill(pid, signal.SIGCONT)
    """
    _, seen = ranks(2, program, timeout_s=3)
    name, why, where, _, code = seen["lost"]
    assert (name, code, where) == ("LostRanks", 4, "last heard of rank 0: not known, it does not answer")
    assert why.startswith("rank 1 waited for the other ranks in vain: ")
    assert 3 < seen["seconds"] < 30


def test_ranks_agree_without_the_training_group():
    """As under NCCL, where that group cannot say who is lost: torch's fake group returns at once and exchanges nothing.

    So nothing here goes through it, and a rank that is killed is named by the other.
    """
    program = """
    world.device = "cuda:0"  # where nothing of an agreement may lie
    seen["max"] = world.all_reduce_max(3 + world.rank)
    seen["sum"] = world.all_reduce_sum(torch.tensor([1.0 + world.rank])).tolist()
    seen["gathered"] = world.gather("x" * world.rank)
    seen["first"] = world.broadcast_object([world.rank])
    seen["failed"] = agreed(None, DataError("no box"))
    try:
        with world.raise_together("trying"):
            if world.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
    except Exception as error:
        seen["lost"] = outcome(error)
    """
    (seen,) = ranks(2, program, timeout_s=20, killed=[1], backend="fake")
    assert [seen[name] for name in ("max", "sum", "gathered", "first")] == [[4], [3.0], ["", "x"], [0]]
    assert seen["failed"][:2] == ["DataError", "rank 1: no box"]
    name, why, where, _, code = seen["lost"]
    assert (name, code, where) == ("LostRanks", 4, "last heard of rank 1: trying")
    assert why.startswith("rank 0 waited for the other ranks in vain: ")


def test_a_lone_script_gets_the_variables_of_one_rank():
    with mock.patch.dict(os.environ, {"MASTER_ADDR": "somewhere"}):
        os.environ.pop("RANK", None)
        fill_launcher_variables()
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")
        assert [os.environ[name] for name in names] == ["0", "0", "1", "127.0.0.1"]
        assert 1024 <= int(os.environ["MASTER_PORT"]) < 65536


def test_a_launchers_variables_win():
    launched = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5"}
    with mock.patch.dict(os.environ, launched):
        before = dict(os.environ)
        fill_launcher_variables()
        assert dict(os.environ) == before

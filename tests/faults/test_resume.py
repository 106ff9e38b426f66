"""A run that was killed or stopped goes on by the same command, and ends as the one that never was: to the last bit."""

import random
import re
import time

import pytest

from ds_stage2ab import cli
from ds_stage2ab.engine.resume import choose
from ds_stage2ab.errors import EXIT_CONFIG, EXIT_OK, EXIT_STOPPED, EXIT_TRAINING
from ds_stage2ab.metrics.journal import read_history
from tests import ranks
from tests.faults.resumed_runs import MATCHING, STEPS, assert_attempts, assert_the_same

NUM_KILLS = 30
PASS_S = 60
KILLED_AFTER_S = (0.2, 9.0)  # a whole run takes some 15 s


@pytest.mark.parametrize(
    ("place", "begins"),
    [
        ("latest:4", "after step 4"),
        pytest.param("rollouts:5", "after step 4", marks=pytest.mark.soak),
        pytest.param("manifest:4", "after step 2", marks=pytest.mark.soak),
        pytest.param("evaluation:2", "after step 2", marks=pytest.mark.soak),
        pytest.param("rollouts:1", "from the first step", marks=pytest.mark.soak),
    ],
)
def test_a_killed_run_goes_on_to_the_last_bit(runs, place, begins):
    name = place.replace(":", "-")
    assert runs.killed(name, place).returncode != EXIT_OK
    done = runs(name, "--resume", "auto")
    assert done.returncode == EXIT_OK, done.stdout[-3000:] + done.stderr[-3000:]
    assert begins in done.stdout and f"{name}, attempt 2\n" in done.stdout
    assert_the_same(runs, name)
    assert_attempts(runs.path(name), [1, 2])


@pytest.mark.parametrize(
    ("place", "finished", "signals", "rank"),
    [
        ("evaluation:4", 4, "SIGTERM", 1),
        pytest.param("rollouts:3", 3, "SIGINT", 0, marks=pytest.mark.soak),
        pytest.param("rollouts:5", 5, "SIGUSR1,SIGUSR1", 1, marks=pytest.mark.soak),
        pytest.param("waiting:3", 3, "SIGTERM", 0, marks=pytest.mark.soak),
        pytest.param("waiting:3", 3, "SIGTERM", 1, marks=pytest.mark.soak),
        pytest.param("passes:2", 2, "SIGTERM", 1, marks=pytest.mark.soak),
        pytest.param("reading:0", 0, "SIGTERM", 1, marks=pytest.mark.soak),
        pytest.param("reading:3", 3, "SIGUSR1", 0, marks=pytest.mark.soak),
    ],
)
def test_a_stopped_run_is_saved_and_goes_on_to_the_last_bit(runs, place, finished, signals, rank):
    name = f"{place}-{signals}-{rank}".replace(":", "-").replace(",", "-")
    reads = {"data.workers": 2} if place.startswith("reading") else None
    done = runs.stopped(name, place, signals, rank, reads)
    assert done.returncode == EXIT_STOPPED, done.stdout[-3000:] + done.stderr[-3000:]
    checkpoint = runs.path(name) / "checkpoints" / f"step-{finished:06d}"
    assert done.stderr.count("stopped: ") == 1 and "Traceback" not in done.stderr
    saved = f"its newest checkpoint is {checkpoint}" if finished else "it has saved no checkpoint yet"
    assert f"to rank {rank}, after step {finished} of 6; {saved}" in done.stderr
    history = read_history(runs.path(name) / "metrics.jsonl")
    assert [one.step for one in history.steps] == list(range(1, finished + 1))
    assert not place.startswith("evaluation") or finished not in [one.step for one in history.evaluations]
    done = runs(name, "--resume", "auto")
    assert done.returncode == EXIT_OK, done.stdout[-3000:] + done.stderr[-3000:]
    assert (f"after step {finished}" if finished else "from the first step") in done.stdout
    assert_the_same(runs, name)


@pytest.mark.soak
def test_a_second_signal_ends_it_at_once(runs):
    """Three seconds after the first, in the middle of a pass that takes longer: to one rank, heard by both."""
    begun = time.monotonic()
    done = runs.stopped("twice", "passes:3", "SIGTERM,SIGINT", rank=1, PASS_S=str(PASS_S), PAUSE_S="3")
    assert done.returncode == EXIT_STOPPED and time.monotonic() - begun < PASS_S
    assert "stopped: at once by a second SIGINT, during forward and backward of step 4; its newest" in done.stderr
    assert [path.name for path in sorted((runs.path("twice") / "checkpoints").glob("step-*"))] == ["step-000002"]


def test_a_run_that_gets_no_better_is_done_and_one_without_its_state_is_not_gone_on_with(runs):
    changes = {
        "training.learning_rate": 1e-12,
        "stage2_ab.schedule.b_ratio": 0,
        "evaluation.every_steps": 1,
        "evaluation.stop_after": 1,
        "checkpoint.keep_best": "eval/f1",
        "checkpoint.engine_state": False,
        "checkpoint.every_steps": None,
    }
    done = runs("no-better", changes=changes, num_ranks=1)
    assert done.returncode == EXIT_OK, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"done: eval/f1 [0-9.]+ after step 1 is better than those of the 1 evaluation", done.stdout)
    folder = runs.path("no-better") / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["best", "latest", "step-000001", "step-000002"]
    assert (folder / "best").read_text() == "step-000001\n"
    fault = "it holds the weights alone (checkpoint.engine_state: false)"
    assert choose("auto", folder)[1][0].startswith(f"step-000002 is passed over: {fault}")
    assert not (folder / "step-000002" / "training").exists() and (folder / "step-000002" / "hf").is_dir()


ROWS = {"tuner.type": "lora", "tuner.trainable_token_rows": "coordinates", "model.freeze": ["vision"]}


@pytest.mark.soak
@pytest.mark.parametrize(
    "changes",
    [
        {"deepspeed.zero_stage": 0, "deepspeed.gradient_clipping": 0.5, "data.workers": 2},
        {"deepspeed.zero_stage": 2, "deepspeed.offload_optimizer": "cpu", "model.precision": "bf16"},
        {"deepspeed.zero_stage": 3, "model.precision": "bf16", "stage2_ab.channel_b.target": "append"},
        {"deepspeed.zero_stage": 3, "deepspeed.offload_optimizer": "cpu", **ROWS},
        {"deepspeed.zero_stage": 1, "model.precision": "bf16", **ROWS, "tuner.type": "dora"},
        {"training.optimizer": "sgd", "stage2_ab.schedule.b_ratio": 0, "data.object_order": "random"},
        {"data.epoch_end": "wrap", "stage2_ab.schedule.b_ratio": 1, f"{MATCHING}.decoding.temperature": 0},
        {"stage2_ab.schedule.b_ratio": 1, f"{MATCHING}.best_of": 3},
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()),
)
def test_every_kind_of_run_goes_on_to_the_last_bit(runs, changes):
    whole = "-".join(re.sub(r"\W", "", str(value)) for value in changes.values())
    assert runs(whole, changes=changes).returncode == EXIT_OK
    runs.cut(f"{whole}-cut", 4, whole)
    done = runs(f"{whole}-cut", "--resume", "latest", changes=changes)
    assert done.returncode == EXIT_OK, done.stdout[-3000:] + done.stderr[-3000:]
    assert_the_same(runs, f"{whole}-cut", whole)


@pytest.mark.soak
def test_recorded_rollouts_go_on_to_the_last_bit(runs):
    replay = {f"{MATCHING}.rollout_backend": "replay", f"{MATCHING}.replay.run": str(runs.path("whole"))}
    assert runs("replay", changes=replay).returncode == EXIT_OK
    runs.cut("replay-cut", 4, "replay")
    done = runs("replay-cut", "--resume", "auto", changes=replay)
    assert done.returncode == EXIT_OK, done.stdout[-3000:] + done.stderr[-3000:]
    assert_the_same(runs, "replay-cut", "replay")


@pytest.mark.soak
def test_bad_steps_are_counted_on(runs):
    """Two in a row are tolerated. The third comes two steps after the checkpoint, which counts the first."""
    words = runs.words("bad", {"training.max_bad_steps": 2, "stage2_ab.schedule.b_ratio": 0})
    for begins in ("from the first step", "goes on after step 4"):
        planted = {"FAULT": "nan:3,4,5", "FAULTY_RANK": "1"}
        done = ranks.run("tests/faults/planted.py", *words[1:], ranks=2, environment=planted)
        assert done.returncode == EXIT_TRAINING, done.stdout[-3000:] + done.stderr[-3000:]
        assert begins in done.stdout
        steps = read_history(runs.path("bad") / "metrics.jsonl").steps
        assert [one.step for one in steps if not one.applied] == [4, 5]


@pytest.mark.soak
def test_kills_at_random_moments_change_nothing(runs):
    """At the start, in steps, rollouts, evaluations and saves, as they come; the same command each time."""
    chance, name = random.Random(20), "random"
    for _ in range(NUM_KILLS):
        with ranks.started(2, *runs.words(name)) as started:
            time.sleep(chance.uniform(*KILLED_AFTER_S))
            chance.choice(started).kill()
    done = runs(name, "--resume", "auto")
    assert done.returncode == EXIT_OK, done.stdout[-3000:] + done.stderr[-3000:]
    assert_the_same(runs, name)


def test_a_finished_run_says_so(runs):
    before = (runs.path("whole") / "metrics.jsonl").read_bytes()
    done = runs("whole", "--resume", "auto")
    assert done.returncode == EXIT_OK, done.stderr
    assert f"all {STEPS} steps are done" in done.stdout
    assert (runs.path("whole") / "metrics.jsonl").read_bytes() == before


def test_a_run_folder_without_the_flag_is_refused(runs):
    done = runs("whole")
    assert done.returncode == EXIT_CONFIG
    assert "already holds a run" in done.stderr and "--resume auto" in done.stderr


def test_another_run_is_shown_what_has_changed(runs):
    """Before anything is loaded."""
    runs.cut("slower", 4)
    slower = {"training.learning_rate": 5e-4, "logging.every_steps": 2}
    done = runs("slower", "--resume", "4", changes=slower)
    assert done.returncode == EXIT_CONFIG
    place = re.escape(str(runs.folder / "slower.yaml"))
    assert re.search(rf"config\.training\.learning_rate: 0\.001 -> 0\.0005 \({place}:\d+\)\n", done.stderr)
    assert "--allow-change" in done.stderr and str(runs.path("slower") / "checkpoints" / "step-000004") in done.stderr
    assert "logging" not in done.stderr


@pytest.mark.parametrize(
    ("num_ranks", "stage"), [(1, 3), *(pytest.param(2, stage, marks=pytest.mark.soak) for stage in (0, 2, 3))]
)
def test_other_ranks_and_stages_go_on_from_the_same_checkpoint(runs, num_ranks, stage):
    name = f"on-{num_ranks}-in-{stage}"
    runs.cut(name, 4)
    other = {"deepspeed.zero_stage": stage}
    done = runs(name, "--resume", "auto", "--allow-change", changes=other, num_ranks=num_ranks)
    assert done.returncode == EXIT_OK, done.stderr
    assert f"deepspeed.zero_stage: 1 -> {stage}" in done.stdout
    assert ("learners: 2 -> 1" in done.stdout) == (num_ranks == 1)
    seen, expected = (read_history(runs.path(one) / "metrics.jsonl").steps for one in (name, "whole"))
    losses = [[step.metrics["loss/total"] for step in steps] for steps in (seen, expected)]
    assert len(losses[0]) == STEPS and losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_fork_goes_on_under_another_name(runs):
    """The run that it comes from stays as it is."""
    source = runs.path("whole") / "checkpoints" / "step-000004"
    done = runs("fork", "--resume", str(source))
    assert done.returncode == EXIT_OK, done.stderr
    assert [one.step for one in read_history(runs.path("fork") / "metrics.jsonl").steps] == [5, 6]
    final = [runs.path(name) / "checkpoints" / "step-000006" / "hf" / "model.safetensors" for name in ("fork", "whole")]
    assert final[0].read_bytes() == final[1].read_bytes()


def test_a_run_that_was_killed_beside_a_damaged_checkpoint_goes_on_from_the_one_before(runs, capsys):
    """Killed in the rollouts of step 5."""
    assert runs.killed("damaged", "rollouts:5").returncode != EXIT_OK
    file = runs.path("damaged") / "checkpoints" / "step-000004" / "training" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert cli.main(["checkpoints", str(runs.path("damaged")), "--verify"]) == EXIT_OK
    listed = " ".join(capsys.readouterr().out.split())
    assert "training/model.safetensors has changed" in listed and "complete, every file" in listed
    done = runs("damaged", "--resume", "latest")
    assert done.returncode == EXIT_OK, done.stderr
    assert "step-000004 is passed over: training/model.safetensors has changed since it was written" in done.stdout
    assert_the_same(runs, "damaged")
    assert_attempts(runs.path("damaged"), [1, 2])
    names = {path.name for path in (runs.path("damaged") / "checkpoints").iterdir()}
    assert "step-000004.superseded-1" in names

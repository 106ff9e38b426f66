"""`ds-stage2ab evaluate` in processes of its own: the same figures on one rank and on two, and what it refuses."""

import json
import signal

import pytest

from ds_stage2ab.errors import EXIT_CONFIG, EXIT_ENVIRONMENT, EXIT_OK, EXIT_UNCAUGHT
from tests.parts import config_values, merged, write_config
from tests.ranks import launch_script, run, started

LONGEST_S = 60
TIMES = ("eval/seconds", "eval/generated_tokens_per_second")


@pytest.fixture
def config(shipped, tmp_path):
    """Eleven samples, so that two ranks hold different numbers."""
    changes = {"data.validation": str(shipped.data / "validation.jsonl"), "evaluation.max_samples": 11}
    return write_config(tmp_path / "c.yaml", merged(config_values(shipped, tmp_path, "run"), changes))


def evaluate(*words):
    return run("-m", "ds_stage2ab", "evaluate", *map(str, words), ranks=1)


def test_any_number_of_ranks_gives_the_same_figures(config, shipped, tmp_path):
    words = ["--config", str(config), "--checkpoint", str(shipped.model), "--format", "json"]
    alone = evaluate(*words, "--pictures", tmp_path / "pictures", "--set", "evaluation.num_pictures=2")
    assert alone.returncode == EXIT_OK, alone.stderr
    both = launch_script("--no_local_rank", "--module", "ds_stage2ab", "evaluate", *words, ranks=2)
    assert both.returncode == EXIT_OK, both.stderr
    one = json.loads(alone.stdout)
    two, _ = json.JSONDecoder().raw_decode(both.stdout, both.stdout.index("{\n"))  # the launcher prints too
    for found in (one, two):
        for name in TIMES:
            assert found["figures"].pop(name) > 0
    assert one["figures"] == pytest.approx(two["figures"], rel=1e-5)
    assert [row["description"] for row in one["descriptions"]] == [row["description"] for row in two["descriptions"]]
    assert one["figures"]["eval/samples"] == 11
    assert 0 < one["figures"]["eval/ap_by_probability"] < one["figures"]["eval/ap50_by_probability"] < 1
    assert sum(row["matched"] for row in one["descriptions"]) > 0
    assert len([*(tmp_path / "pictures").rglob("*validation*.png")]) == 2


def test_a_table_for_people(config, shipped):
    done = evaluate("--config", config, "--checkpoint", shipped.model, "--set", "evaluation.max_samples=2")
    assert done.returncode == EXIT_OK, done.stderr
    assert "by description" in done.stdout and "eval/ap_by_probability" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_what_cannot_be_evaluated_is_one_message(config, shipped, tmp_path):
    empty = evaluate("--config", config, "--checkpoint", tmp_path)
    assert (empty.returncode, "hf/config.json" in empty.stderr) == (EXIT_ENVIRONMENT, True)
    nothing = evaluate("--config", config, "--checkpoint", shipped.model, "--set", "data.validation=null")
    assert (nothing.returncode, "there is nothing to evaluate on" in nothing.stderr) == (EXIT_CONFIG, True)
    (tmp_path / "file").write_text("in the way")
    nowhere = evaluate("--config", config, "--checkpoint", shipped.model, "--pictures", tmp_path / "file")
    assert (nowhere.returncode, "--pictures" in nowhere.stderr) == (EXIT_ENVIRONMENT, True)
    assert "evaluating" not in nowhere.stderr  # known before the work
    for done in (empty, nothing, nowhere):
        assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr


def test_what_no_rank_can_evaluate_is_said_once(config, tmp_path):
    words = ("evaluate", "--config", str(config), "--checkpoint", str(tmp_path))
    with started(2, "-m", "ds_stage2ab", *words) as processes:
        said = [process.communicate(timeout=LONGEST_S)[1] for process in processes]
    assert [process.returncode for process in processes] == [EXIT_ENVIRONMENT] * 2
    assert ("hf/config.json" in said[0], "error" in said[1]) == (True, False)


def test_a_killed_rank_ends_the_other_with_words(config, shipped):
    words = ("evaluate", "--config", str(config), "--checkpoint", str(shipped.model))
    with started(2, "tests/faults/faulty_evaluation.py", *words, FAULT="kill") as processes:
        said = [process.communicate(timeout=LONGEST_S)[1] for process in processes]
    assert [process.returncode for process in processes] == [EXIT_ENVIRONMENT, -signal.SIGKILL]
    assert "rank 0 waited for the other ranks in vain" in said[0] and "Traceback" not in said[0]


def test_a_mistake_on_one_rank_ends_both(config, shipped):
    words = ("evaluate", "--config", str(config), "--checkpoint", str(shipped.model))
    with started(2, "tests/faults/faulty_evaluation.py", *words, FAULT="mistake") as processes:
        said = [process.communicate(timeout=LONGEST_S)[1] for process in processes]
    assert [process.returncode for process in processes] == [EXIT_UNCAUGHT] * 2
    assert "error: rank 1: ValueError: a mistake" in said[0] and "Traceback" in said[1]

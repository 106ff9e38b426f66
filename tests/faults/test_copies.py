"""Two ranks with two copies of what a run reads: they end before the first step, with one message."""

import json
import os
import shutil

import pytest

from ds_stage2ab.errors import EXIT_CONFIG, EXIT_DATA, EXIT_ENVIRONMENT, EXIT_OK
from tests.parts import ROOT, config_values, merged, write_config
from tests.ranks import started

LONGEST_S = 120


@pytest.fixture
def copies(quickstart, tmp_path):
    """A folder for each rank, with a config, the records and the small files of the checkpoint; one step."""
    for rank in ("0", "1"):
        folder = tmp_path / rank
        shutil.copytree(quickstart.model, folder / "model", copy_function=os.link)
        (folder / "train.jsonl").write_bytes((quickstart.data / "train.jsonl").read_bytes())
        changes = {
            "model.path": "model",
            "data.train": "train.jsonl",
            "data.image_root": str(quickstart.data),
            "training.max_steps": 1,
        }
        write_config(folder / "c.yaml", merged(config_values(quickstart, tmp_path / "runs", "copies"), changes))
    return tmp_path


def run(copies, *words):
    """(exit codes, what each rank wrote to stderr)."""
    environment = {"COPIES": str(copies), "PYTHONPATH": str(ROOT)}
    with started(2, "tests/faults/copies.py", *words, "--config", "c.yaml", **environment) as ranks:
        said = [rank.communicate(timeout=LONGEST_S)[1] for rank in ranks]
    return [rank.returncode for rank in ranks], said


def changed_records(folder):
    lines = (folder / "train.jsonl").read_text().splitlines()
    record = json.loads(lines[40])
    record["objects"][0]["bbox_2d"] = [1, 2, 3, 4]
    lines[40] = json.dumps(record)
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")


def changed_order(folder):
    first, second, *rest = (folder / "train.jsonl").read_text().splitlines()
    (folder / "train.jsonl").write_text("\n".join([second, first, *rest]) + "\n")


def changed_config(folder):
    values = json.loads((folder / "c.yaml").read_text())
    values["training"]["learning_rate"] = 0.02
    write_config(folder / "c.yaml", values)


def changed_code(folder):
    shutil.copytree(ROOT / "ds_stage2ab", folder / "ds_stage2ab", ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "ds_stage2ab" / "losses" / "boxes.py").open("a") as file:
        file.write("\n")


def changed_checkpoint(folder):
    path = folder / "model" / "preprocessor_config.json"
    text = path.read_text()
    path.unlink()  # a hard link
    path.write_text(text + "\n")


def changed_recording(folder):
    """Both replay a recording, each its own copy."""
    matching = "custom.extra.rollout_matching"
    replay = {f"{matching}.rollout_backend": "replay", f"{matching}.replay.run": "recorded"}
    for rank, lines in (("0", "a"), ("1", "ab")):
        recorded = folder.parent / rank / "recorded" / "rollouts"
        recorded.mkdir(parents=True)
        (recorded / "rank-00000.jsonl").write_text(lines)
        values = json.loads((folder.parent / rank / "c.yaml").read_text())
        write_config(folder.parent / rank / "c.yaml", merged(values, replay))


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (changed_config, EXIT_CONFIG, ("training.learning_rate is 0.01 on rank 0, 0.02 on rank 1",)),
        (changed_code, EXIT_ENVIRONMENT, ("ds_stage2ab/losses/boxes.py is ",)),
        (changed_checkpoint, EXIT_ENVIRONMENT, ("files in model: preprocessor_config.json is ",)),
        pytest.param(
            changed_recording,
            EXIT_ENVIRONMENT,
            ("recordings in recorded: rollouts/rank-00000.jsonl is 1 bytes on rank 0, 2 bytes on rank 1",),
            marks=pytest.mark.soak,
        ),
        (changed_records, EXIT_DATA, ("train.jsonl:41", "[1, 2, 3, 4]")),
        (changed_order, EXIT_DATA, ("train.jsonl:1: ", "line 1 is ")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_another_copy_on_one_rank_ends_both(copies, change, code, words):
    change(copies / "1")
    codes, said = run(copies)
    assert codes == [code, code], said
    assert said[0].count("error: ") == 1 and "Traceback" not in said[0] + said[1]
    assert "error" not in said[1]
    assert all(word in said[0] for word in (*words, "the ranks have different ", "on rank 0", "on rank 1")), said[0]
    assert not (copies / "runs" / "copies").exists()


@pytest.mark.parametrize(
    ("change", "words"), [(changed_checkpoint, "files in model: preprocessor"), (changed_records, "train.jsonl:41")]
)
def test_so_it_does_in_an_evaluation(copies, change, words):
    for rank in ("0", "1"):
        values = json.loads((copies / rank / "c.yaml").read_text())
        write_config(copies / rank / "c.yaml", merged(values, {"data.validation": "train.jsonl"}))
    change(copies / "1")
    codes, said = run(copies, "evaluate", "--checkpoint", "model")
    assert codes[0] == codes[1] != EXIT_OK, said
    assert said[0].count("error: ") == 1 and words in said[0] and "error" not in said[1]


def test_copies_that_are_equal_are_one_run(copies):
    codes, said = run(copies)
    assert codes == [EXIT_OK, EXIT_OK], said
    assert (copies / "runs" / "copies" / "metrics.jsonl").exists()

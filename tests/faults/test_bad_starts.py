"""A run that cannot start says why in one message, ends with its class's exit code and leaves nothing behind."""

import json
import os
import shutil

import pytest
from PIL import Image

from ds_stage2ab.data.stream import SampleOrder
from ds_stage2ab.errors import EXIT_CONFIG, EXIT_DATA, EXIT_ENVIRONMENT
from ds_stage2ab.metrics.journal import read_history
from tests.parts import config_values, merged, write_config
from tests.ranks import launch, train


@pytest.fixture
def data(quickstart, tmp_path):
    """A copy of the training set that a test may damage."""
    shutil.copytree(quickstart.data, tmp_path / "data")
    return tmp_path / "data"


def change_record(data, number, change):
    """Apply `change` to the record on a line (counted from 1) of train.jsonl; returns the path of its image."""
    path = data / "train.jsonl"
    lines = path.read_text().splitlines()
    record = json.loads(lines[number - 1])
    change(record)
    lines[number - 1] = json.dumps(record)
    path.write_text("\n".join(lines) + "\n")
    return data / record["images"][0]


def missing_jsonl(data):
    (data / "train.jsonl").unlink()
    return "train.jsonl", "data.train"


def line_that_is_no_json(data):
    path = data / "train.jsonl"
    lines = path.read_text().splitlines()
    lines[4] = lines[4][:-3]
    path.write_text("\n".join(lines) + "\n")
    return "train.jsonl:5", "JSON"


def missing_image(data):
    change_record(data, 3, lambda record: None).unlink()
    return "train.jsonl:3", "images/"


def corrupt_image(data):
    change_record(data, 7, lambda record: None).write_bytes(b"this is no picture")
    return "train.jsonl:7", "image"


def image_that_is_a_pipe(data):
    image = change_record(data, 2, lambda record: None)
    image.unlink()
    os.mkfifo(image)
    return "train.jsonl:2", "FIFO"


def other_size(data):
    change_record(data, 2, lambda record: record.update(width=record["width"] + 16))
    return "train.jsonl:2", "width"


def box_out_of_order(data):
    def swap(record):
        record["objects"] = [{"desc": "one", "bbox_2d": [500, 100, 400, 200]}]

    change_record(data, 6, swap)
    return "train.jsonl:6", "objects[0]", "x2"


@pytest.mark.parametrize(
    "damage",
    [
        missing_jsonl,
        line_that_is_no_json,
        missing_image,
        corrupt_image,
        image_that_is_a_pipe,
        other_size,
        box_out_of_order,
    ],
)
def test_bad_data_stops_before_the_run_folder_exists(quickstart, data, tmp_path, damage):
    words = damage(data)
    values = merged(config_values(quickstart, tmp_path / "runs", "bad"), {"data.train": str(data / "train.jsonl")})
    refused(train(write_config(tmp_path / "bad.yaml", values), ranks=1), EXIT_DATA, words)
    assert not (tmp_path / "runs").exists()


def test_bad_data_stops_two_ranks_with_one_message(quickstart, data, tmp_path):
    words = corrupt_image(data)
    values = merged(config_values(quickstart, tmp_path / "runs", "bad"), {"data.train": str(data / "train.jsonl")})
    done = launch(write_config(tmp_path / "bad.yaml", values), ranks=2)
    refused(done, EXIT_DATA, words)
    assert not (tmp_path / "runs").exists()


def test_an_image_that_breaks_off_stops_both_ranks_in_the_middle_of_the_run(quickstart, data, tmp_path):
    """A JPEG's header is right, so only the rank that draws it finds out: draw 44 belongs to the sixth step of 8."""
    line = SampleOrder(42, 64, 64).record_of(44) + 1
    image = change_record(data, line, lambda record: None)
    Image.open(image).save(image, format="JPEG", quality=95)
    image.write_bytes(image.read_bytes()[:-400])
    changes = {"data.train": str(data / "train.jsonl"), "training.max_steps": 8}
    values = merged(config_values(quickstart, tmp_path / "runs", "broken"), changes)
    done = launch(write_config(tmp_path / "broken.yaml", values), ranks=2)
    refused(done, EXIT_DATA, [f"train.jsonl:{line}", image.name])
    run = tmp_path / "runs" / "broken"
    assert not (run / "run.lock").exists() and not (run / "checkpoints").exists()
    assert [step.step for step in read_history(run / "metrics.jsonl").steps] == [1, 2, 3, 4, 5]


def test_checkpoint_without_coordinate_tokens(quickstart, tmp_path):
    values = merged(config_values(quickstart, tmp_path / "runs", "bad"), {"model.path": str(quickstart.plain)})
    done = train(write_config(tmp_path / "bad.yaml", values), ranks=1)
    refused(done, EXIT_ENVIRONMENT, ["coordinate tokens", "ds-stage2ab add-coord-tokens"])
    assert not (tmp_path / "runs").exists()


def test_batch_that_does_not_divide(quickstart, tmp_path):
    changes = {"training.effective_batch_size": 9}
    values = merged(config_values(quickstart, tmp_path / "runs", "bad"), changes)
    done = train(write_config(tmp_path / "bad.yaml", values), ranks=1)
    refused(done, EXIT_CONFIG, ["training.effective_batch_size", "8 or 12"])
    assert not (tmp_path / "runs").exists()


def test_run_folder_that_already_holds_a_run(quickstart, tmp_path):
    earlier = tmp_path / "runs" / "bad"
    earlier.mkdir(parents=True)
    (earlier / "config.json").write_text("{}")
    config = write_config(tmp_path / "bad.yaml", config_values(quickstart, tmp_path / "runs", "bad"))
    refused(train(config, ranks=1), EXIT_CONFIG, ["already holds a run", "logging.name"])
    assert [path.name for path in earlier.iterdir()] == ["config.json"]


def refused(done, code, words):
    """The run ended with the code, and stderr holds one message with all the words and no traceback."""
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    message = done.stderr[done.stderr.index("error: ") :]
    assert all(word in message for word in words), message
    assert "fix: " in message
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr

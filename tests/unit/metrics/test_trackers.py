"""Trackers: TensorBoard for real, and what is said of one that is missing or fails; others: tests/test_trackers.py."""

import json
import resource
import threading

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ds_stage2ab.errors import EnvironmentFault
from ds_stage2ab.metrics.journal import EvaluationRecord, StepRecord
from ds_stage2ab.metrics.tensorboard_tracker import Tracker
from ds_stage2ab.metrics.trackers import (
    PACKAGES,
    TrackedRun,
    TrackerSink,
    check_trackers,
    open_trackers,
    tracked_values,
)

COMMON = {"loss/total": 3.5, "train/learning_rate": 1e-4}


def step(number, channel, **metrics):
    return StepRecord(
        step=number, channel=channel, applied=True, metrics=COMMON | metrics, skipped=(), wall_time=2.0 * number
    )


def tracked(folder, finished_steps=0, attempt=3):
    config = {"training": {"seed": 1}}
    return TrackedRun(name="run", folder=folder, config=config, finished_steps=finished_steps, attempt=attempt)


def events_of(folder):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def test_each_channel_has_its_own_line(tmp_path):
    (sink,) = open_trackers(["tensorboard"], tracked(tmp_path), pytest.fail)
    sink.step(step(1, "A"))
    sink.step(step(2, "B", **{"match/f1": 0.25}))
    sink.evaluation(EvaluationRecord(step=2, metrics={"eval/f1": 0.5}, wall_time=5.0))
    sink.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert file.name.endswith(".attempt-3")
    events = events_of(tmp_path)
    assert set(events.Tags()["scalars"]) == {
        "loss/total/A", "loss/total/B", "train/learning_rate/A", "train/learning_rate/B", "match/f1", "eval/f1",
    }  # fmt: skip
    assert [(one.step, one.wall_time, one.value) for one in events.Scalars("loss/total/B")] == [(2, 4.0, 3.5)]


def test_pictures_are_one_series_for_each_image(tmp_path):
    sink = TrackerSink("tensorboard", Tracker(tracked(tmp_path)), pytest.fail)
    for number in (0, 100):
        file = tmp_path / f"step_{number:06d}" / "00_cats.png"
        file.parent.mkdir()
        Image.new("RGBA", (40, 30), (number, 9, 9, 255)).save(file)
        sink.pictures(number, [file])
    sink.close()
    shown = events_of(tmp_path).Images("pictures/00_cats")
    assert [(one.step, one.width, one.height) for one in shown] == [(0, 40, 30), (100, 40, 30)]


def test_what_an_earlier_attempt_did_after_the_checkpoint_is_hidden(tmp_path):
    """Whether a run goes on from a checkpoint, or had none and starts again."""
    for attempt, finished, last, left in (
        (1, 0, 4, [1.0, 1.0, 1.0, 1.0]), (2, 2, 4, [1.0, 1.0, 2.0, 2.0]), (3, 0, 2, [3.0, 3.0])
    ):  # fmt: skip
        (sink,) = open_trackers(["tensorboard"], tracked(tmp_path, finished, attempt), pytest.fail)
        for number in range(finished + 1, last + 1):
            sink.step(step(number, "A", **{"loss/total": float(attempt)}))
        sink.close()
        assert [one.value for one in events_of(tmp_path).Scalars("loss/total/A")] == left


def test_a_disk_that_is_full_is_one_warning(tmp_path, monkeypatch):
    """TensorBoard writes in a thread, which dies, and says so at a later call."""
    died, said = [], []
    monkeypatch.setattr(threading, "excepthook", died.append)
    (sink,) = open_trackers(["tensorboard"], tracked(tmp_path), said.append)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        sink.step(step(1, "A"))
        sink.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(said) == 1 and said[0].startswith("tensorboard gets nothing more of this run: ") and died == []


def test_names_of_evaluations_and_of_one_channel_stay():
    names = set(tracked_values(step(1, "B", **{"match/f1": 1.0})))
    assert names == {"loss/total/B", "train/learning_rate/B", "match/f1"}


def test_an_id_is_remembered(tmp_path):
    run = tracked(tmp_path)
    assert [run.id_at("wandb", lambda: "a"), run.id_at("mlflow", lambda: "b")] == ["a", "b"]
    assert tracked(tmp_path, 5).id_at("wandb", pytest.fail) == "a"
    assert json.loads((tmp_path / "tracker_ids.json").read_text()) == {"wandb": "a", "mlflow": "b"}


class Unplugged:
    """A tracker whose server is gone after the first report."""

    faults = (ConnectionError,)

    def __init__(self):
        self.calls = 0

    def scalars(self, values, step, wall_time):
        self.calls += 1
        if self.calls > 1:
            raise ConnectionError("no route to host")

    def pictures(self, files, step):
        raise KeyError("ours")

    def close(self):
        raise AssertionError("never reached")


def test_a_run_outlives_its_tracker():
    said, tracker = [], Unplugged()
    sink = TrackerSink("mlflow", tracker, said.append)
    for number in range(1, 5):
        sink.step(step(number, "A"))
    sink.close()
    assert said == ["mlflow gets nothing more of this run: no route to host; metrics.jsonl has everything"]
    assert tracker.calls == 2
    with pytest.raises(KeyError):  # what is no fault of the tracker's is ours
        TrackerSink("mlflow", Unplugged(), said.append).pictures(1, [])


def test_a_missing_package_is_named_before_anything_is_loaded(monkeypatch):
    check_trackers(["tensorboard"])
    monkeypatch.setitem(PACKAGES, "wandb", "a_package_that_nobody_has")
    with pytest.raises(EnvironmentFault, match="names wandb, which is not installed") as caught:
        check_trackers(["tensorboard", "wandb"])
    assert caught.value.fix.startswith("pip install 'ds_stage2ab[wandb]'")

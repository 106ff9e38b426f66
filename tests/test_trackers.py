"""W&B, MLflow and Trackio, the real packages without a network: a run, its second attempt, and what they then hold."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.architecture.sources import ROOT

pytestmark = pytest.mark.soak

MISSING = "is missing; the verb `make soak` installs what these tests need: its lines in the Makefile name it"
# Two attempts in processes of their own, as a run is killed and goes on; the second makes step 2 again.
REPORT = """
import sys
from pathlib import Path
from PIL import Image
from ds_stage2ab.metrics.journal import EvaluationRecord, StepRecord
from ds_stage2ab.metrics.trackers import TrackedRun, check_trackers, open_trackers
name, folder, finished = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
check_trackers([name])
config = {"training": {"seed": 1, "learning_rate": 1e-4}, "data": {"user_prompt": "Find all"}}
run = TrackedRun(name="my-run", folder=folder, config=config, finished_steps=finished, attempt=1)
(sink,) = open_trackers([name], run, lambda text: sys.exit(text))
for step, channel in ((finished + 1, "A"), (finished + 2, "B")):
    metrics = {"loss/total": float(step), "train/tokens": 7}
    sink.step(StepRecord(step=step, channel=channel, applied=True, metrics=metrics, skipped=(), wall_time=9.0 + step))
sink.evaluation(EvaluationRecord(step=finished + 2, metrics={"eval/f1": 0.5}, wall_time=20.0))
picture = folder / f"{finished}" / "00_cats.png"
picture.parent.mkdir()
Image.new("RGB", (40, 30), "red").save(picture)
sink.pictures(finished + 2, [picture])
sink.close()
"""


@pytest.fixture
def reported(tmp_path, monkeypatch):
    """What `REPORT` leaves: the folder, after two attempts."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))

    def report(name):
        assert find_spec(name), f"{name} {MISSING}"
        for finished in (0, 1):
            done = subprocess.run(
                [sys.executable, "-c", REPORT, name, str(tmp_path), str(finished)],
                cwd=ROOT, capture_output=True, text=True, timeout=180, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
        return tmp_path

    return report


def test_wandb(reported):
    folder = reported("wandb")
    (key,) = json.loads((folder / "tracker_ids.json").read_text()).values()
    runs = sorted((folder / "wandb").glob("offline-run-*"))
    assert len(runs) == 2 and all(run.name.endswith(f"-{key}") for run in runs)
    said = [history_of(run / f"run-{key}.wandb") for run in runs]
    for finished, rows in enumerate(said):
        assert {"loss/total/A": finished + 1, "train/tokens/A": 7, "step": finished + 1} in rows
        assert {"eval/f1": 0.5, "step": finished + 2} in rows
        (shown,) = (row for row in rows if "pictures/00_cats.width" in row)
        assert [shown[f"pictures/00_cats.{what}"] for what in ("width", "height")] == [40, 30]
        assert shown["step"] == finished + 2
    assert all(len(list((run / "files" / "media").rglob("*.png"))) == 1 for run in runs)


def history_of(file):
    """The rows of an offline run: records of protobuf in LevelDB's log format, each with a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content, place, rows, parts = file.read_bytes(), 7, [], b""
    while place + 7 <= len(content):
        if 2**15 - place % 2**15 < 7:  # the rest of a block is empty
            place += 2**15 - place % 2**15
            continue
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record.FromString(parts)
            items = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows += [{key: value for key, value in items.items() if not key.startswith("_")}] if items else []
            parts = b""
    return rows


def test_mlflow(reported, monkeypatch):
    folder = reported("mlflow")
    from mlflow import MlflowClient

    client = MlflowClient()
    (experiment,) = (one for one in client.search_experiments() if one.name == "ds_stage2ab")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == json.loads((folder / "tracker_ids.json").read_text())["mlflow"]
    assert (run.info.run_name, run.info.status) == ("my-run", "FINISHED")
    assert run.data.params == {
        "training.seed": "1", "training.learning_rate": "0.0001", "data.user_prompt": '"Find all"',
    }  # fmt: skip
    history = client.get_metric_history(run.info.run_id, "loss/total/A")
    assert [(one.step, one.value, one.timestamp) for one in history] == [(1, 1.0, 10_000), (2, 2.0, 11_000)]
    images = [one.path for one in client.list_artifacts(run.info.run_id, "images")]
    assert sum(one.endswith(".png") for one in images) == 2 and all("pictures~00_cats+step+" in one for one in images)


def test_trackio(reported):
    folder = reported("trackio")
    import trackio

    (run,) = trackio.Api().runs("ds_stage2ab")
    assert run.name == f"my-run-{json.loads((folder / 'tracker_ids.json').read_text())['trackio']}"
    from trackio.sqlite_storage import SQLiteStorage

    rows = SQLiteStorage.get_logs("ds_stage2ab", run.name)
    assert [(row["step"], row["loss/total/A"]) for row in rows if "loss/total/A" in row] == [(1, 1.0), (2, 2.0)]
    assert [row["step"] for row in rows if "pictures/00_cats" in row] == [2, 3]
    assert len(list((folder / "trackio" / "media").rglob("*.png"))) == 2

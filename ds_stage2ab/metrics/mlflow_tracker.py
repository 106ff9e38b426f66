"""MLflow. Its own variables hold: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ..."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from PIL import Image

from ds_stage2ab.config.resolved import flat
from ds_stage2ab.metrics.trackers import PROJECT, TrackedRun

MILLISECONDS = 1000
MAX_PARAMS = 100  # of one call


class Tracker:
    """One run of an experiment."""

    faults = (MlflowException, OSError)

    def __init__(self, run: TrackedRun) -> None:
        self._client = MlflowClient()
        self._id = run.id_at("mlflow", lambda: self._created(run))
        self._client.update_run(self._id, status="RUNNING")

    def _created(self, run: TrackedRun) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        created = self._client.create_run(experiment, run_name=run.name).info.run_id
        params = [Param(key, json.dumps(value)) for key, value in flat(run.config)]
        for first in range(0, len(params), MAX_PARAMS):
            self._client.log_batch(created, params=params[first : first + MAX_PARAMS])
        return created

    def scalars(self, values: Mapping[str, float], step: int, wall_time: float) -> None:
        moment = round(wall_time * MILLISECONDS)
        metrics = [Metric(name, float(value), moment, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def pictures(self, files: Sequence[Path], step: int) -> None:
        for file in files:
            with Image.open(file) as image:
                self._client.log_image(self._id, image.convert("RGB"), key=f"pictures/{file.stem}", step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)

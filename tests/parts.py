"""Real parts for tests: a tiny Qwen3-VL with coordinate tokens, digit scenes, config files, the launcher."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ds_stage2ab.tools.add_coord_tokens import add_coord_tokens
from ds_stage2ab.tools.digit_scenes import Layout, generate
from ds_stage2ab.tools.tiny_model import build_tiny

ROOT = Path(__file__).parents[1]
LAUNCHER = Path(sys.executable).with_name("deepspeed")
RUN_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Quickstart:
    """Folders that tests read and never write."""

    model: Path
    plain: Path
    # the same model without coordinate tokens
    data: Path


def build_quickstart(folder: Path) -> Quickstart:
    """A freshly initialised model, and 64 training and 12 validation scenes."""
    parts = Quickstart(model=folder / "model", plain=folder / "plain", data=folder / "data")
    build_tiny(parts.plain, seed=0)
    add_coord_tokens(parts.plain, parts.model)
    layout = Layout(max_digits=3, min_height=34, max_side=112)
    generate(parts.data, seed=0, train_scenes=64, validation_scenes=12, layout=layout)
    return parts


def config_values(parts: Quickstart, runs: Path, name: str) -> dict[str, Any]:
    """A small fp32 SGD run on Channel A: 6 steps of 8 samples, no evaluation."""
    return {
        "training": {
            "effective_batch_size": 8,
            "per_device_train_batch_size": 4,
            "global_max_length": 512,
            "max_steps": 6,
            "learning_rate": 0.01,
            "lr_scheduler": "constant",
            "optimizer": "sgd",
            "weight_decay": 0.0,
        },
        "stage2_ab": {"schedule": {"b_ratio": 0}, "coord_ce_weight": 1.0},
        "custom": {"extra": {"rollout_matching": {"decode_batch_size": 4, "max_new_tokens": 80}}},
        "model": {"path": str(parts.model), "precision": "fp32"},
        "data": {"train": str(parts.data / "train.jsonl"), "user_prompt": "Detect every digit."},
        "deepspeed": {"zero_stage": 0, "gradient_clipping": 0.0},
        "logging": {"root": str(runs), "name": name, "trackers": []},
    }


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`values` with dotted keys replaced: {"training.packing": False}."""
    values = json.loads(json.dumps(values))
    for path, value in changes.items():
        *parents, key = path.split(".")
        section = values
        for parent in parents:
            section = section.setdefault(parent, {})
        section[key] = value
    return values


def write_config(path: Path, values: dict[str, Any]) -> Path:
    """JSON is YAML."""
    path.write_text(json.dumps(values, indent=1))
    return path


def as_tuples(carrier: Any) -> Any:
    """The same object with tuples in the place of arrays: it can be compared, and read in a failure."""
    values = {field.name: getattr(carrier, field.name) for field in fields(carrier)}
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    return replace(carrier, **{name: tuple(array.tolist()) for name, array in arrays.items()})


def free_port() -> int:
    """A TCP port that nobody listens on now: two runs on one machine must not share the launcher's default."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(
    config: Path, *arguments: str, ranks: int, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`deepspeed --num_gpus N ds_stage2ab/train.py --config X ...`."""
    words = ("ds_stage2ab/train.py", "--config", str(config), *arguments)
    return launch_script(*words, ranks=ranks, environment=environment)


def launch_script(
    *words: str,
    ranks: int,
    environment: dict[str, str] | None = None,
    launcher: tuple[str, ...] = (str(LAUNCHER),),
) -> subprocess.CompletedProcess[str]:
    """`deepspeed --num_gpus N words...`, one thread per rank, output captured."""
    command = [*launcher, "--num_gpus", str(ranks), "--master_port", str(free_port()), *words]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **(environment or {})}
    variables["PATH"] = f"{LAUNCHER.parent}{os.pathsep}{variables['PATH']}"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=variables, start_new_session=True, **pipes) as process:
        try:
            stdout, stderr = process.communicate(timeout=RUN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            # The launcher's own launcher and the ranks outlive it: end the whole session that was started here.
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)

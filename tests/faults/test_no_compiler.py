"""A machine without a compiler trains."""

import shutil

from ds_stage2ab.metrics.journal import read_history
from tests.parts import LAUNCHER, config_values, launch, merged, write_config


def test_two_ranks_train_where_no_compiler_is_found(quickstart, tmp_path):
    nothing = tmp_path / "empty"
    nothing.mkdir()
    search_path = f"{LAUNCHER.parent}:{nothing}"
    assert not any(shutil.which(name, path=search_path) for name in ("c++", "g++", "gcc", "cc", "clang", "nvcc"))
    values = merged(config_values(quickstart, tmp_path / "runs", "plain"), {"training.max_steps": 2})
    config = write_config(tmp_path / "plain.yaml", values)
    environment = {"PATH": str(nothing), "CC": "", "CXX": "", "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}
    done = launch(config, ranks=2, environment=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert len(read_history(tmp_path / "runs" / "plain" / "metrics.jsonl").steps) == 2

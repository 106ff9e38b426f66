"""What decides the results of a run, as plain values: a checkpoint keeps it, and a resumed run is compared with it."""

import os
import platform
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from ds_stage2ab.config.load import LoadedConfig
from ds_stage2ab.runtime.versions import library_versions

DIGEST_BYTES = 16


def run_facts(loaded: LoadedConfig, num_learners: int) -> dict[str, Any]:
    """Config, records, versions and learner ranks."""
    data = loaded.config.data
    files = {"train": data.train, "validation": data.validation}
    return {
        "config": loaded.resolved,
        "records": {name: _records(path) for name, path in files.items() if path is not None},
        "versions": library_versions(),
        "learners": num_learners,
    }


def environment(hosts: Sequence[str], device: str) -> dict[str, Any]:
    """What a run was computed with, as a person asks for it; nothing is compared with it.

    Args:
        hosts: of each rank.
    """
    is_gpu = torch.device(device).type == "cuda"
    return {
        "hosts": ", ".join(dict.fromkeys(hosts)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if is_gpu else device,
        "cuda": torch.version.cuda if is_gpu else None,
        "learners": len(hosts),
        **library_versions(),
    }


def _records(path: Path) -> str:
    """`12 lines, blake2b 9f...`."""
    content = path.read_bytes()
    lines = content.count(b"\n")
    return f"{lines:,} lines, blake2b {blake2b(content, digest_size=DIGEST_BYTES).hexdigest()}"

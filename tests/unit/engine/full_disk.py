"""A disk that is full at each file of a checkpoint in turn; run in mount and user namespaces of its own:

    unshare --map-root-user --mount python -m tests.unit.engine.full_disk CONFIG SOURCE FOLDER

FOLDER becomes a file system of its own, in memory. Prints a line of JSON for each file: its name, what was raised, and
what is there afterwards.
"""

import json
import os
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

from transformers import Qwen2VLImageProcessorPil

from ds_stage2ab.config.load import load_config
from ds_stage2ab.engine import checkpoint
from ds_stage2ab.engine.build import build_engine, build_optimizer, load_checkpoint, start_process_group
from ds_stage2ab.engine.resume import choose
from ds_stage2ab.engine.whole_model import WholeModel
from ds_stage2ab.errors import Stage2Error
from ds_stage2ab.plan import make_plan
from ds_stage2ab.runtime.ranks import World, fill_launcher_variables
from ds_stage2ab.runtime.shutdown import exit_now
from tests.unit.engine.saving import save, section

SIZE_MIB = 200
PAGE = 4096
ROOM_TO_NAME = 4 * PAGE
"""For `latest`, and for no second checkpoint."""
TIMEOUT_S = 60


def main(config_path, source, folder):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "tmpfs", folder], check=True)
    disk = Path(folder)
    fill_launcher_variables()
    config = load_config(Path(config_path)).config
    world = World(start_process_group(TIMEOUT_S))
    model = load_checkpoint(config.model, min_pixels=None, max_pixels=None).model
    engine = build_engine(model, build_optimizer(model, config.training), make_plan(config, 1, 64).deepspeed_config)
    processor = Qwen2VLImageProcessorPil.from_pretrained(source)
    whole_model = WholeModel(model, world, is_partitioned=False)
    parts = (disk / "checkpoints", Path(source), processor, engine, whole_model, world)
    checkpoints = checkpoint.Checkpoints(*parts, section=section(), warn=print)
    print(told(checkpoints, "room", filled(disk, 2 * PAGE)))  # looked at before anything is written
    first = save(checkpoints, 1)
    checkpoint.refuse_without_room = lambda folder, needed: None  # another process fills the disk meanwhile
    files = sorted((path for path in first.rglob("*") if path.is_file()), key=lambda path: path.stat().st_mtime_ns)
    before = 0  # bytes of the files that are there when one is written
    for file in (*files, checkpoints.folder / "latest"):
        room = before + whole_pages(file.stat().st_size) // 2
        print(told(checkpoints, file.relative_to(checkpoints.folder).as_posix(), filled(disk, room)), flush=True)
        before += whole_pages(file.stat().st_size)
    print(told(checkpoints, "latest again", filled(disk, ROOM_TO_NAME)))
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    print(told(checkpoints, "read-only", nullcontext(), step=3))
    exit_now(0)


def told(checkpoints, name, disk, step=2):
    """What a save does while the disk is as the context `disk` makes it."""
    why = ""
    try:
        with disk:
            save(checkpoints, step)
    except Stage2Error as error:
        why = error.why
    saved, _ = choose("auto", checkpoints.folder)
    there = sorted(path.name for path in checkpoints.folder.iterdir())
    return json.dumps({"file": name, "why": why, "goes on": saved.finished_steps if saved else 0, "there": there})


@contextmanager
def filled(disk, room):
    filler, free = disk / "filler", os.statvfs(disk).f_bavail * PAGE
    filler.write_bytes(b"\0" * (free - room // PAGE * PAGE))
    try:
        yield
    finally:
        filler.unlink()


def whole_pages(size):
    return -(-size // PAGE) * PAGE


if __name__ == "__main__":
    main(*sys.argv[1:])

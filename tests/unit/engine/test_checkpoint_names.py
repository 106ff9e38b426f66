"""Beside the weights of a checkpoint: which folders are ours, what `latest` says, and a disk that is full."""

import os
import resource
from pathlib import Path
from unittest import mock

import pytest

from ds_stage2ab.errors import EnvironmentFault
from tests.unit.engine.saving import save


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "name", ["step-000100-good", "step-best", "step-0000007", "step-12", "step-" + 6 * "\u0661", "old"]
)
def test_names_that_are_not_ours_are_left_alone(checkpoints, warnings, name):
    (checkpoints.folder / name / "hf").mkdir(parents=True)
    (checkpoints.folder / "step-000050").write_text("a file")
    (checkpoints.folder / "step-000060").symlink_to(name)
    for step in (1, 2, 3):
        save(checkpoints, step)
    others = sorted([name, "step-000050", "step-000060"])
    assert sorted(listed(checkpoints.folder)) == sorted(["latest", "step-000002", "step-000003", *others])
    assert (checkpoints.folder / name / "hf").is_dir() and warnings == []


def test_a_checkpoint_that_cannot_be_deleted_is_a_warning(checkpoints, warnings):
    """And is tried again, under a name that no reader takes for a checkpoint."""
    save(checkpoints, 1)
    save(checkpoints, 2)
    refused = PermissionError(13, "Permission denied")
    with mock.patch("shutil.rmtree", side_effect=lambda path, ignore_errors=False: raised(refused, ignore_errors)):
        save(checkpoints, 3)
    left = checkpoints.folder / ".step-000001.deleted"
    assert warnings == [
        f"the old checkpoint {left} cannot be deleted: Permission denied; the run goes on, delete it yourself"
    ]
    assert (checkpoints.folder / "latest").read_text() == "step-000003\n" and left.is_dir()
    save(checkpoints, 4)
    assert listed(checkpoints.folder) == ["latest", "step-000003", "step-000004"]


def raised(error, ignored):
    if not ignored:
        raise error


def test_latest_is_on_the_disk_before_it_replaces_the_one_before(checkpoints):
    done = []
    replace, fsync = Path.replace, os.fsync

    def flushed(handle):
        done.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def replaced(path, target):
        done.append(("replaced", target))
        return replace(path, target)

    with mock.patch("os.fsync", flushed), mock.patch.object(Path, "replace", replaced):
        save(checkpoints, 7)
    latest = checkpoints.folder / "latest"
    place = done.index(("replaced", latest))
    assert done[place - 1] == checkpoints.folder / ".latest.partial"
    assert done[place + 1 :] == [checkpoints.folder]


def test_a_file_that_cannot_be_written_whole_is_named(checkpoints):
    """A limit of its size stands for a disk that is full: the system takes a part of what is written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(EnvironmentFault) as caught:
            save(checkpoints, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in caught.value.why and caught.value.fix.startswith("free space")
    assert listed(checkpoints.folder) == []

"""What follows a save beside the next steps: it holds the weights of that moment, and its failures are told."""

import errno
import os
import threading
from unittest import mock

import pytest
import torch

from ds_stage2ab.engine import publish, shards
from ds_stage2ab.engine.checkpoint import Checkpoints
from ds_stage2ab.engine.resume import choose
from ds_stage2ab.engine.shards import StoredTensors
from ds_stage2ab.engine.space import free_memory
from ds_stage2ab.engine.training_state import trained
from ds_stage2ab.errors import EnvironmentFault
from tests.unit.engine.saving import save, section

FULL = OSError(errno.ENOSPC, "No space left on device")
save_file = shards.save_file


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_run_goes_on_while_a_checkpoint_is_completed(checkpoints, bench):
    may_go_on = threading.Event()
    before = {name: parameter.detach().clone() for name, parameter in trained(bench.model)}

    def late(*words, **options):
        if threading.current_thread() is not threading.main_thread():  # which writes the export
            assert may_go_on.wait(60)
        return save_file(*words, **options)

    with mock.patch.object(shards, "save_file", late):  # so nothing of the state is written yet
        checkpoints.save(1)
        assert choose("auto", checkpoints.folder)[0] is None, "it is not there before it is complete"
        with torch.no_grad():
            for _, parameter in trained(bench.model):
                parameter += 1.0
        may_go_on.set()
        checkpoints.settle()
    stored = StoredTensors(checkpoints.folder / "step-000001" / "training")
    assert all(torch.equal(stored[f"{name}/weight"], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS], ids=errno.errorcode.get)
def test_a_failure_there_is_raised_at_the_next_checkpoint(checkpoints, code):
    """No space, a quota, a file system that has become read-only."""
    save(checkpoints, 1)
    with mock.patch.object(publish, "manifest_text", side_effect=OSError(code, os.strerror(code))):
        checkpoints.save(2)
        with pytest.raises(EnvironmentFault, match=os.strerror(code)):
            checkpoints.save(3)
    assert listed(checkpoints.folder) == ["latest", "step-000001"]


def test_a_state_that_cannot_be_written_is_raised_too(checkpoints):
    with mock.patch("ds_stage2ab.engine.shards.save_file", side_effect=[None, FULL]), pytest.raises(EnvironmentFault):
        save(checkpoints, 1)
    assert listed(checkpoints.folder) == []


def test_a_run_may_go_on_without_one_checkpoint(checkpoints, warnings):
    tolerant = Checkpoints(
        checkpoints.folder, checkpoints.source, checkpoints.image_processor, checkpoints.engine,
        checkpoints.whole_model, checkpoints.world, section=section(on_error="warn"), warn=warnings.append,
    )  # fmt: skip
    save(tolerant, 1)
    with mock.patch.object(publish, "manifest_text", side_effect=FULL):
        save(tolerant, 2)
    assert len(warnings) == 1 and warnings[0].startswith("a checkpoint cannot be written: [Errno 28] No space left on")
    assert warnings[0].endswith("the run goes on without this checkpoint")
    assert tolerant.newest == 1, "so that the end of the run saves that step again"
    save(tolerant, 3)
    assert listed(tolerant.folder) == ["latest", "step-000001", "step-000003"]
    with mock.patch.object(publish, "manifest_text", side_effect=FULL):
        tolerant.save(4, must=True)
        with pytest.raises(EnvironmentFault):
            tolerant.settle(must=True)


def test_a_failure_costs_one_checkpoint_and_not_the_next(checkpoints, warnings):
    checkpoints.section = section(on_error="warn")
    with mock.patch.object(publish, "manifest_text", side_effect=FULL):
        checkpoints.save(1)
        checkpoints.publisher._pool.submit(lambda: None).result(60)  # the thread has come to it
    save(checkpoints, 2)
    assert len(warnings) == 1 and listed(checkpoints.folder) == ["latest", "step-000002"]


def test_one_that_latest_could_not_name_is_named_by_the_next_save_of_its_step(checkpoints, bench):
    """It is complete, so nothing is written again: the disk has no room for it."""
    save(checkpoints, 1)
    with mock.patch.object(publish, "replace_file", side_effect=FULL), pytest.raises(EnvironmentFault):
        save(checkpoints, 2)
    assert (checkpoints.folder / "latest").read_text() == "step-000001\n" and checkpoints.newest == 1
    files = {path: path.stat().st_mtime_ns for path in (checkpoints.folder / "step-000002").rglob("*")}
    with mock.patch("ds_stage2ab.engine.checkpoint.refuse_without_room", side_effect=FULL):
        save(checkpoints, 2)
    assert (checkpoints.folder / "latest").read_text() == "step-000002\n" and checkpoints.newest == 2
    assert files == {path: path.stat().st_mtime_ns for path in (checkpoints.folder / "step-000002").rglob("*")}
    assert listed(checkpoints.folder) == ["latest", "step-000001", "step-000002"]


def test_what_has_the_name_already_is_kept_under_another(checkpoints, warnings):
    """A folder that somebody has put there: the run did not write it, and does not know what it holds."""
    there = checkpoints.folder / "step-000001"
    (there / "hf").mkdir(parents=True)
    save(checkpoints, 1)
    assert listed(checkpoints.folder) == ["latest", "step-000001", "step-000001.superseded-1"]
    assert listed(checkpoints.folder / "step-000001.superseded-1") == ["hf"]
    assert choose("latest", checkpoints.folder)[0].finished_steps == 1
    assert warnings == [f"{there} was there, and this run did not write it: it is step-000001.superseded-1 now"]


@pytest.mark.parametrize(("limit", "used", "free"), [("4096", "1196", 3000), ("4096", "5000", 0), ("max", "7", None)])
def test_the_limit_of_a_container_is_seen_and_its_page_cache_is_free(tmp_path, limit, used, free):
    (tmp_path / "memory.stat").write_text("anon 900\ninactive_file 70\nactive_file 30\n")
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text(used)
    seen = free_memory(tmp_path)
    assert seen == free if free is not None else seen > 2**20


def test_the_best_one_is_kept_however_old(checkpoints):
    for step in (1, 2, 3, 4, 5):
        save(checkpoints, step)
        if step == 2:
            checkpoints.keep_best(2)
    assert listed(checkpoints.folder) == ["best", "latest", "step-000002", "step-000004", "step-000005"]

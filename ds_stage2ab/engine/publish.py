"""A checkpoint becomes complete: copied tensors are written, then manifest, flush, rename, `latest`; old ones go.

Done in a thread of rank 0 while the next steps run. What fails there is raised by `settle`.
"""

import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from ds_stage2ab.engine.manifest import MANIFEST, manifest_text
from ds_stage2ab.engine.resume import put_aside, saved_steps, step_name
from ds_stage2ab.engine.run_folder import BEST, LATEST, best_name, replace_file, sync
from ds_stage2ab.engine.space import free_memory

DELETED = ".deleted"


class Publisher:
    """Completes checkpoints one at a time.

    Args:
        folder: `<run>/checkpoints`.
        keep_last: how many checkpoints stay on disk, besides the one that `best` names.
    """

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self.warnings: list[str] = []
        # what went wrong and ends nothing, for the main thread to say
        self.published: Path | None = None
        # the newest that has its name, whether `latest` could name it or not
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._jobs: list[tuple[Future[None], int]] = []
        # in the order in which they are done, with the bytes that each holds

    def later(self, write: Callable[[], None], num_bytes: int) -> None:
        """Write in the thread; waits first while what is to be written takes more than half of the free memory.

        Args:
            num_bytes: that `write` holds in memory.
        """
        for job, _ in self._jobs:
            if sum(held for one, held in self._jobs if not one.done()) <= free_memory() // 2:
                break
            wait([job])
        self._jobs.append((self._pool.submit(write), num_bytes))

    def begin(self, partial: Path, final: Path) -> None:
        """Start to complete the checkpoint in the folder `partial` as `final`, after what was given to `later`.

        One that is `published` already is only named by `latest`.
        """
        written = [job for job, _ in self._jobs]
        self._jobs.append((self._pool.submit(self._publish, written, partial, final), 0))

    def drop(self, partial: Path) -> None:
        """Give up a checkpoint that was not begun to be completed, and delete what is there of it."""
        wait([job for job, _ in self._jobs])
        self._jobs = []
        shutil.rmtree(partial, ignore_errors=True)

    def settle(self) -> None:
        """Wait until it is complete.

        Raises:
            OSError, SafetensorError: it cannot be completed; what was written of it is deleted.
        """
        jobs, self._jobs = self._jobs, []
        for job, _ in reversed(jobs):  # the last raises what failed before it
            job.result()  # no time-out: a disk that hangs would hang every other write of the run

    def name_best(self, finished_steps: int) -> None:
        """Make `best` name a complete checkpoint."""
        replace_file(self.folder / BEST, step_name(finished_steps) + "\n")

    def _publish(self, written: list[Future[None]], partial: Path, final: Path) -> None:
        try:
            for job in written:
                job.result(timeout=0)  # of this thread, so it is done
            if final != self.published:
                self._name(partial, final)
            replace_file(self.folder / LATEST, final.name + "\n")
        except BaseException:  # whatever ends it, nothing half written stays
            shutil.rmtree(partial, ignore_errors=True)
            raise
        self._prune()

    def _name(self, partial: Path, final: Path) -> None:
        """Give a checkpoint its manifest and, when it is on the disk, its name; what has that name is kept."""
        (partial / MANIFEST).write_text(manifest_text(partial), encoding="utf-8")
        for path in (*partial.rglob("*"), partial):
            sync(path)
        if final.exists():
            aside = put_aside(final)
            self.warnings.append(f"{final} was there, and this run did not write it: it is {aside.name} now")
        partial.rename(final)
        sync(self.folder)
        self.published = final

    def _prune(self) -> None:
        """Delete the oldest complete checkpoints beyond `keep_last`; a name that is not ours is left alone.

        Renamed first: one that is deleted in part must not look complete.
        """
        best = best_name(self.folder)
        for name in map(step_name, saved_steps(self.folder)[: -self.keep_last]):
            try:
                if name != best:
                    (self.folder / name).rename(self.folder / f".{name}{DELETED}")
            except OSError as error:
                self._warn_of_old(self.folder / name, error)
        for hidden in self.folder.glob(f".step-*{DELETED}"):
            try:
                shutil.rmtree(hidden)
            except OSError as error:
                self._warn_of_old(hidden, error)

    def _warn_of_old(self, folder: Path, error: OSError) -> None:
        why = f"the old checkpoint {folder} cannot be deleted: {error.strerror}"
        self.warnings.append(f"{why}; the run goes on, delete it yourself")

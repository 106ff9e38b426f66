"""The runbook's lines for schedulers, run with a fake of the scheduler alone."""

import os
import re
import signal
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from ds_stage2ab.errors import EXIT_OK, EXIT_STOPPED
from ds_stage2ab.metrics.journal import read_history
from tests.faults.resumed_runs import STEPS, Runs
from tests.launching import Launched
from tests.parts import ROOT

START_S, END_S = 120, 240
RUNBOOK = ROOT / "docs" / "training" / "STAGE2_RUNBOOK.md"
SPEC = re.compile(r"^```\n(spec:.*?)^```", re.DOTALL | re.MULTILINE)
BLOCK = re.compile(r"^```\n(#SBATCH.*?)^```", re.DOTALL | re.MULTILINE)
SRUN = '#!/bin/sh\nshift\nexec "$@"\n'
SCONTROL = '#!/bin/sh\necho "$@" >> "$FOLDER/requeued"\n'


def batch_script(config):
    """That of the runbook, for this machine."""
    (block,) = (one for one in BLOCK.findall(RUNBOOK.read_text(encoding="utf-8")) if "requeue" in one)
    for old, new in (("my.yaml", str(config)), ("--train-gpus 0-7", "--cpu --train-ranks 2")):
        assert old in block
        block = block.replace(old, new)
    return "#!/bin/bash\n" + block


class Job(Launched):
    """The batch script as Slurm would run it."""

    def __init__(self, script, folder):
        path = f"{folder}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {"PATH": path, "FOLDER": str(folder), "SLURM_JOB_ID": "77", "PYTHONPATH": str(ROOT)}
        super().__init__(["bash", str(script)], folder, environment)

    def signal_step(self):
        """The process that srun has started, as slurmstepd does."""
        (task,) = psutil.Process(self.process.pid).children()
        task.send_signal(signal.SIGUSR1)


@pytest.mark.soak
def test_a_job_that_slurm_warns_is_saved_queued_again_and_ends(shipped, tmp_path):
    runs = Runs(shipped, tmp_path)
    script = tmp_path / "job.sh"
    script.write_text(batch_script(runs.config("job")))
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    journal = runs.path("job") / "metrics.jsonl"
    job = Job(script, tmp_path)
    try:
        job.wait_for(lambda: journal.exists() and read_history(journal).steps, START_S)
        job.signal_step()
        assert job.ends(END_S) == EXIT_STOPPED
    finally:
        job.end()
    assert "stopped: SIGTERM to rank " in job.said and "launch: SIGUSR1; stopped the learner" in job.said
    assert (tmp_path / "requeued").read_text() == "requeue 77\n"
    stopped_at = read_history(journal).steps[-1].step
    assert stopped_at < STEPS and (runs.path("job") / "checkpoints" / f"step-{stopped_at:06d}").is_dir()
    again = Job(script, tmp_path)
    try:
        assert again.ends(END_S) == EXIT_OK
    finally:
        again.end()
    assert (tmp_path / "requeued").read_text() == "requeue 77\n", "a finished job is not queued again"
    assert [one.step for one in read_history(journal).steps] == list(range(1, STEPS + 1))


class Pod(Launched):
    """The one container of the runbook's job, which ends as Kubernetes ends it."""

    def __init__(self, spec, config, folder):
        (container,) = spec["template"]["spec"]["containers"]
        words = [str(config) if word == "my.yaml" else word for word in container["command"]]
        place = words.index("--train-gpus")
        words[place : place + 2] = ["--cpu", "--train-ranks", "2"]
        words[0] = str(Path(sys.executable).with_name(words[0]))
        super().__init__(words, folder, {"PYTHONPATH": str(ROOT)})


@pytest.mark.soak
def test_a_pod_that_kubernetes_moves_is_saved_and_its_successor_ends(shipped, tmp_path):
    """The kubelet sends SIGTERM to the container's first process; the policy says what follows from its exit code."""
    runs = Runs(shipped, tmp_path)
    (block,) = SPEC.findall(RUNBOOK.read_text(encoding="utf-8"))
    spec = yaml.safe_load(block)["spec"]
    config, journal = runs.config("job"), runs.path("job") / "metrics.jsonl"
    pod = Pod(spec, config, tmp_path)
    try:
        pod.wait_for(lambda: journal.exists() and read_history(journal).steps, START_S)
        pod.process.send_signal(signal.SIGTERM)
        code = pod.ends(spec["template"]["spec"]["terminationGracePeriodSeconds"])
    finally:
        pod.end()
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule == {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [code]}} and code == EXIT_STOPPED
    assert spec["template"]["spec"]["restartPolicy"] == "Never", "a failure policy of pods allows no other"
    stopped_at = read_history(journal).steps[-1].step
    assert stopped_at < STEPS and (runs.path("job") / "checkpoints" / f"step-{stopped_at:06d}").is_dir()
    again = Pod(spec, config, tmp_path)
    try:
        assert again.ends(END_S) == EXIT_OK
    finally:
        again.end()
    assert [one.step for one in read_history(journal).steps] == list(range(1, STEPS + 1))

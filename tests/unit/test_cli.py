"""`ds-stage2ab plan` as users run it: a process of its own, from a laptop, for 512 GPUs too."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parts import ROOT

PROD = sorted((ROOT / "configs" / "stage2_ab" / "prod").glob("*.yaml"))
OTHERS = sorted(set((ROOT / "configs").rglob("*.yaml")) - set(PROD))
# Heavy packages that the process imported, after its own output.
PROBE = (
    "import sys; from ds_stage2ab.cli import main; code = main();"
    "print(sorted({'torch', 'transformers', 'deepspeed', 'numpy', 'PIL'} & set(sys.modules)), file=sys.stderr);"
    "sys.exit(code)"
)


def plan(file: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", PROBE, "plan", str(file), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("file", PROD, ids=lambda path: path.stem)
def test_a_production_config_on_512_devices(file):
    done = plan(file, "--learners", "128", "--rollout-gpus", "384", "--records", "1000000", "--format", "json")
    assert (done.returncode, done.stderr) == (0, "[]\n")
    data = json.loads(done.stdout)
    # 128 samples on 128 ranks; 1,000,000 / 128 = 7,812 steps
    assert data["batch"] == "128 samples per step = 1 per rank x 128 ranks x 1 micro-step"
    assert (data["total_steps"], data["samples_per_rank"]) == (7812, 1)
    assert data["idle"]["devices"] == 384
    servers = data["rollouts"]["servers"]
    if data["rollouts"]["backend"] == "vllm":
        # 384 replicas x 4 = 1,536 places; on 128 ranks 12 each
        assert (servers["replicas"], servers["request_window"]) == ([64] * 6, 12)
        assert {sum(slots) for slots in servers["slots_of_each_rank"]} == {12}
    else:
        assert servers is None


@pytest.mark.parametrize("file", OTHERS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_other_config_has_a_plan(file):
    done = plan(file, "--learners", "2")
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert done.stdout.startswith(f"{file} on 2 learners")
    assert '"train_batch_size"' in done.stdout
    # a warning is a sentence, and quotes paths of any length
    tables = [line for line in done.stdout.splitlines() if not line.startswith("warning: ")]
    assert max(map(len, tables)) <= 160


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--set", "training.sed=3"), 2, "did you mean `training.seed`"),
        (("--set", "training.seed"), 2, "has no `=`"),
        (("--learners", "3"), 2, "is not a multiple of 3"),
        (("--learners", "0"), 2, "whole number from 1"),
        (("--records", "0"), 2, "is not a whole number from 1 up"),
        (("--records", "5"), 2, "data.train holds 5 records"),
        (("--set", "data.train=README.md"), 3, "README.md:1: is no record"),
    ],
)
def test_a_fault_is_one_message_and_its_code(arguments, code, message):
    done = plan(ROOT / "configs" / "stage2_ab" / "prod" / "ab_mixed.yaml", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_not_there_is_a_fault_of_the_command_line():
    done = plan(Path("nowhere.yaml"))
    assert done.returncode == 2
    assert "nowhere.yaml" in done.stderr

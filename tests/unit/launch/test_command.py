"""`ds-stage2ab launch`: what would be started, and what is refused, without starting anything."""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ds_stage2ab.cli import main
from ds_stage2ab.config.load import load_config
from ds_stage2ab.config.overrides import read_overrides
from ds_stage2ab.config.sections import ServerSection
from ds_stage2ab.errors import ConfigError
from ds_stage2ab.launch.command import LAST_LOOK_S, WATCH_S, learner_command, watch
from ds_stage2ab.launch.options import Topology, add_launch_options, read_devices, read_topology
from ds_stage2ab.launch.processes import Server
from ds_stage2ab.launch.server_command import local_port, server_command, share_devices, with_replica_size
from tests.parts import ROOT, free_port

PROD = ROOT / "configs" / "stage2_ab" / "prod" / "ab_mixed.yaml"
PYTHON = Path("/venv/bin/python")


def servers(*sizes):
    return [
        ServerSection(base_url=f"http://127.0.0.1:{8000 + i}", group_port=None, tensor_parallel_size=size)
        for i, size in enumerate(sizes)
    ]


def options(*words):
    parser = argparse.ArgumentParser()
    add_launch_options(parser)
    return parser.parse_args(["--config", "c.yaml", *words])


def pairs(words):
    """Options of a command line by name."""
    named = [(word, words[i + 1]) for i, word in enumerate(words[:-1]) if word.startswith("--")]
    return {word: value for word, value in named if not value.startswith("--")}


@pytest.mark.parametrize(
    ("text", "devices"), [("0-5", (0, 1, 2, 3, 4, 5)), ("6,7", (6, 7)), ("3", (3,)), ("5,0-2", (0, 1, 2, 5))]
)
def test_a_list_of_devices(text, devices):
    assert read_devices(text) == devices


@pytest.mark.parametrize("text", ["", ",", "0,", "5-0", "-1", "0-", "a", "0 1", "0-9999999", "0,0", "0-2,2", "1.5"])
def test_no_list_of_devices(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"is no list of devices|names a device twice"):
        read_devices(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rollout-gpus", "0-5", "--train-gpus", "4,5,6"), "4, 5 cannot serve and learn at once"),
        (("--rollout-gpus", "0"), "both --rollout-gpus and --train-gpus are needed"),
        (("--train-gpus", "0"), "both --rollout-gpus and --train-gpus are needed"),
        ((), "both --rollout-gpus and --train-gpus are needed"),
        (("--rollout-gpus", "0", "--train-gpus", "1", "--train-ranks", "1"), "and no --train-ranks"),
        (("--cpu",), "--cpu goes with --train-ranks"),
        (("--cpu", "--train-ranks", "2", "--rollout-gpus", "0"), "without --rollout-gpus and --train-gpus"),
    ],
)
def test_topologies_that_are_none(words, message):
    with pytest.raises(ConfigError, match=message):
        read_topology(options(*words), None, serves=True)


@pytest.mark.parametrize(
    ("visible", "rollout", "train"),
    [
        ("4,5,6,7", ("4", "5"), ("7",)),  # half a machine
        ("7, 2,0,1", ("7", "2"), ("1",)),  # in their order
        ("GPU-8f3a,GPU-77,3,GPU-0c", ("GPU-8f3a", "GPU-77"), ("GPU-0c",)),
        ("MIG-1,MIG-2,MIG-GPU-3/1/0,MIG-4", ("MIG-1", "MIG-2"), ("MIG-4",)),
    ],
)
def test_devices_are_numbered_within_an_allocation(visible, rollout, train):
    chosen = options("--rollout-gpus", "0,1", "--train-gpus", "3")
    assert read_topology(chosen, visible, serves=True) == Topology(rollout=rollout, train=train, learners=1)


@pytest.mark.parametrize(
    ("visible", "message"),
    [
        ("4,5,6", "--train-gpus names device 3, and CUDA_VISIBLE_DEVICES=4,5,6 allows 3"),
        ("4,5,-1,6", "--train-gpus names device 3, and CUDA_VISIBLE_DEVICES=4,5,-1,6 allows 2"),  # CUDA stops at -1
        ("4", "--rollout-gpus names device 1, and CUDA_VISIBLE_DEVICES=4 allows 1"),
        ("", "--rollout-gpus names device 0, 1, and CUDA_VISIBLE_DEVICES= allows 0"),
        ("NoDevFiles", "--rollout-gpus names device 0, 1, and CUDA_VISIBLE_DEVICES=NoDevFiles allows 0"),
    ],
)
def test_devices_outside_of_an_allocation(visible, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_topology(options("--rollout-gpus", "0,1", "--train-gpus", "3"), visible, serves=True)


@pytest.mark.parametrize(
    ("sizes", "devices", "shares"),
    [
        ((1, 1), (0, 1, 2, 3), [(0, 1), (2, 3)]),  # two replicas each
        ((2, 2), (4, 5, 6, 7), [(4, 5), (6, 7)]),  # one replica of two devices each
        ((1, 2), (0, 1, 2, 3, 4, 5), [(0, 1), (2, 3, 4, 5)]),  # two replicas each: 2 x 1 and 2 x 2 devices
        ((1, 1), (), [(), ()]),
    ],
)
def test_devices_are_shared_out_in_order(sizes, devices, shares):
    assert share_devices(servers(*sizes), devices) == shares


@pytest.mark.parametrize("number", [1, 3, 5])
def test_devices_that_make_no_whole_replicas(number):
    with pytest.raises(ConfigError, match="cannot be dealt out evenly"):
        share_devices(servers(1, 1), tuple(range(number)))


@pytest.mark.parametrize(("url", "port"), [("http://127.0.0.1:8000", 8000), ("http://localhost:9/", 9)])
def test_an_address_that_can_be_started_here(url, port):
    assert local_port(url) == port


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.7:8000",
        "http://0.0.0.0:8000",
        "http://[::1]:8000",  # servers listen at 127.0.0.1 alone
        "https://127.0.0.1:8000",
        "http://127.0.0.1",
        "http://127.0.0.1:0",
        "http://127.0.0.1:99999",
    ],
)
def test_an_address_that_cannot(url):
    with pytest.raises(ConfigError, match="cannot be started here") as caught:
        local_port(url)
    assert caught.value.where.endswith("vllm.server.servers")


def test_the_servers_of_a_production_config():
    """Six servers of one device each; every number is that of the file."""
    config = load_config(PROD).config
    sections = config.rollout_matching.vllm.server.servers
    shares = share_devices(sections, tuple("012345"))
    started = [server_command(config, s, python=PYTHON, devices=d) for s, d in zip(sections, shares, strict=True)]
    assert [pairs(words)["--port"] for words, _ in started] == ["8000", "8001", "8002", "8003", "8004", "8005"]
    assert [variables["CUDA_VISIBLE_DEVICES"] for _, variables in started] == ["0", "1", "2", "3", "4", "5"]
    words, variables = started[0]
    assert words[:3] == ["/venv/bin/python", "-m", "vllm.entrypoints.openai.api_server"]
    assert pairs(words) == {
        "--model": "checkpoints/stage1",
        "--served-model-name": "ds_stage2ab",
        "--host": "127.0.0.1",
        "--port": "8000",
        "--dtype": "bfloat16",
        "--max-model-len": "8192",
        "--max-num-seqs": "4",
        "--generation-config": "vllm",
        "--logprobs-mode": "raw_logprobs",
        "--limit-mm-per-prompt": '{"image": 1, "video": 0}',
        "--weight-transfer-config": '{"backend": "ds_stage2ab_gloo"}',
        "--tensor-parallel-size": "1",
        "--data-parallel-size": "1",
        "--mm-processor-kwargs": '{"max_pixels": 1048576}',
    }
    assert "--enforce-eager" not in words
    assert words[-2:] == ["--enable-scale-out", "--no-mm-device-do-normalize"]
    assert variables == {
        "VLLM_SERVER_DEV_MODE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "CUDA_VISIBLE_DEVICES": "0",
    }


def test_replicas_of_two_devices():
    config = load_config(PROD).config
    (server,) = servers(2)
    words, variables = server_command(config, server, python=PYTHON, devices=("2", "3", "4", "5"))
    # 4 devices / 2 = 2 replicas
    assert (pairs(words)["--tensor-parallel-size"], pairs(words)["--data-parallel-size"]) == ("2", "2")
    assert variables["CUDA_VISIBLE_DEVICES"] == "2,3,4,5"


def test_a_server_on_the_cpu():
    overrides = ["model.precision=fp32", "data.max_pixels=null"]
    config = load_config(PROD, read_overrides(overrides)).config
    words, variables = server_command(config, servers(1)[0], python=PYTHON, devices=())
    assert words[-1] == "--enforce-eager"
    assert (pairs(words)["--dtype"], pairs(words)["--data-parallel-size"]) == ("float32", "1")
    assert "--mm-processor-kwargs" not in words
    assert (variables["VLLM_CPU_KVCACHE_SPACE"], variables["VLLM_ENABLE_V1_MULTIPROCESSING"]) == ("1", "0")
    assert "CUDA_VISIBLE_DEVICES" not in variables


def test_the_learner_on_devices_and_on_the_cpu():
    gpus = Topology(rollout=("0",), train=("6", "GPU-1b2c"), learners=2)
    words, variables = learner_command(Path("c.yaml"), ["training.seed=3"], gpus, 29501)
    assert words[1:5] == ["-m", "deepspeed.launcher.runner", "--log_level", "error"]
    assert words[5:9] == ["--num_gpus", "2", "--master_port", "29501"]
    assert words[9:12] == ["--no_python", "--no_local_rank", "env"]
    assert words[12:15] == ["CUDA_VISIBLE_DEVICES=6,GPU-1b2c", sys.executable, "-u"]
    assert words[15:] == [str(ROOT / "ds_stage2ab" / "train.py"), "--config", "c.yaml", "--set", "training.seed=3"]
    assert variables == {}
    words, variables = learner_command(Path("c.yaml"), [], Topology(rollout=(), train=(), learners=3), 29501)
    assert words[5:7] == ["--num_gpus", "3"]
    assert variables == {"DS_ACCELERATOR": "cpu"}


@pytest.mark.soak
def test_the_ranks_see_the_devices_by_their_names(tmp_path):
    """Through DeepSpeed's own launcher, which by itself would number them."""
    script = tmp_path / "train.py"
    line = r"'{LOCAL_RANK} {CUDA_VISIBLE_DEVICES}\n'"
    script.write_text(f"import os\nos.write(1, {line}.format(**os.environ).encode())\n")
    topology = Topology(rollout=("GPU-0",), train=("GPU-1b2c", "GPU-3d"), learners=2)
    words, _ = learner_command(Path("c.yaml"), [], topology, free_port())
    words[words.index(str(ROOT / "ds_stage2ab" / "train.py"))] = str(script)
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(done.stdout.splitlines()[-2:]) == ["0 GPU-1b2c,GPU-3d", "1 GPU-1b2c,GPU-3d"]


def test_tp_reaches_servers_and_learner_alike():
    before = load_config(PROD).config.rollout_matching.vllm.server.servers
    override = with_replica_size(before, 2)
    after = load_config(PROD, read_overrides([override])).config.rollout_matching.vllm.server.servers
    assert [(s.base_url, s.group_port) for s in after] == [(s.base_url, s.group_port) for s in before]
    assert {s.tensor_parallel_size for s in after} == {2}
    assert len(json.loads(override.partition("=")[2])) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rollout-gpus", "0-4", "--train-gpus", "6,7"), "5 rollout devices cannot be dealt out evenly"),
        (("--rollout-gpus", "0-5", "--train-gpus", "6,7", "--tp", "2"), "takes 12 together"),
        (("--rollout-gpus", "0-5", "--train-gpus", "6-8"), "is not a multiple of 3"),
        (("--rollout-gpus", "0-5", "--train-gpus", "5,6"), "5 cannot serve and learn at once"),
        (("--rollout-gpus", "0-5", "--train-gpus", "6,7", "--set", "model.path=nowhere"), "nowhere: no checkpoint"),
        (("--cpu", "--train-ranks", "2", "--set", "training.sed=3"), "did you mean `training.seed`"),
        (("--cpu", "--train-ranks", "2", "--server-python", "no/python"), "no/python: no Python can be run there"),
    ],
)
def test_a_fault_is_one_message(capsys, monkeypatch, words, message):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    code = main(["launch", "--config", str(PROD), *words])
    said = capsys.readouterr()
    assert code == (4 if "no checkpoint" in message else 2)
    assert message in said.err and said.err.count("error: ") == 1 and said.out == ""


@pytest.mark.parametrize("words", [("--rollout-gpus", ""), ("--train-ranks", "0"), ("--wait", "x"), ("--tp", "-1")])
def test_a_wrong_command_line_is_exit_code_2(capsys, words):
    with pytest.raises(SystemExit) as caught:
        main(["launch", "--config", str(PROD), *words])
    assert caught.value.code == 2
    assert words[0] in capsys.readouterr().err


class Rounds:
    """A process group, its learner and its servers; each of these is (its code, after how many pauses it has ended)."""

    def __init__(self, learner, *servers):
        self.pauses = 0
        self.learner = Member(self, "the learner", *learner)
        self.servers = [
            Server(url="", port=i, process=Member(self, f"server {i}", *ends)) for i, ends in enumerate(servers)
        ]

    def pause(self, seconds):
        assert seconds == WATCH_S
        self.pauses += 1

    def watch(self):
        return watch(self, self.learner, self.servers, lambda: None)


class Member:
    def __init__(self, rounds, name, end_code, after):
        self.rounds, self.name, self.end_code, self.after = rounds, name, end_code, after

    @property
    def code(self):
        return self.end_code if self.rounds.pauses >= self.after else None

    def last_words(self):
        return f": last words of {self.name}"


NEVER = 10**6
LAST_LOOKS = round(LAST_LOOK_S / WATCH_S)


def told(capsys):
    lines = capsys.readouterr().err.splitlines()
    return [line.removeprefix("launch: ") for line in lines if "last words" in line]


@pytest.mark.parametrize(
    ("code", "pauses"),
    [(0, 2), (1, 2), (2, 2), (3, 2), (4, 2 + LAST_LOOKS), (5, 2), (75, 2)],
)
def test_only_a_fault_of_the_environment_gives_sound_servers_time_to_end(capsys, code, pauses):
    rounds = Rounds((code, 2), (1, NEVER), (1, NEVER))
    assert rounds.watch() == code
    assert rounds.pauses == pauses and told(capsys) == []


@pytest.mark.parametrize(
    ("ends", "pauses"),
    [
        ((1, 1), 2),  # seen while the learner lived, which leaves for that reason: nothing to wait for
        ((1, 2), 2),  # in the same moment as the learner
        ((1, 7), 7),  # 5 pauses behind it
        ((1, 2 + LAST_LOOKS), 2 + LAST_LOOKS),  # seen at the last look
    ],
)
def test_a_server_that_ends_is_told_of_once_and_ends_the_waiting(capsys, ends, pauses):
    rounds = Rounds((4, 2), (0, NEVER), ends)
    assert rounds.watch() == 4
    assert rounds.pauses == pauses
    assert told(capsys) == ["server 1 ended with code 1: last words of server 1"]


def test_a_server_that_ends_in_the_moment_of_the_learner_is_told_of_whatever_its_code(capsys):
    rounds = Rounds((5, 2), (137, 2))
    assert rounds.watch() == 5
    assert told(capsys) == ["server 0 ended with code 137: last words of server 0"]


def test_every_server_that_ends_is_told_of(capsys):
    rounds = Rounds((0, 5), (1, 1), (2, 3), (3, 3))
    assert rounds.watch() == 0
    assert told(capsys) == [f"server {i} ended with code {i + 1}: last words of server {i}" for i in range(3)]

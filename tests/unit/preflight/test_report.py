"""The preflight report as users get it: numbers by hand, the words, and what is not known."""

import json
import re
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_stage2ab.config.overrides import read_overrides
from ds_stage2ab.errors import ConfigError, DataError
from ds_stage2ab.plan import Cadence
from ds_stage2ab.preflight.report import PreflightReport, as_data, due_steps, first_steps, preflight_report
from ds_stage2ab.preflight.text import as_text, in_words
from ds_stage2ab.schedule import channel_for_step
from tests.parts import ROOT

QUICKSTART = Path("configs/quickstart/ab_mixed.yaml")
PROD = Path("configs/stage2_ab/prod/ab_mixed.yaml")
STAGE1 = ROOT / "assets" / "quickstart" / "stage1"


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def look(file: Path, *settings: str, learners=2, rollout_devices=None, records=None) -> PreflightReport:
    overrides = read_overrides(settings)
    return preflight_report(file, overrides, learners=learners, rollout_devices=rollout_devices, records=records)


def rows(report: PreflightReport) -> dict[str, str]:
    """The first table of the text: name -> what stands beside it."""
    return dict(re.findall(r"^  (\w+) +(.+)$", as_text(report).split("\n\n")[1], flags=re.MULTILINE))


def written(folder: Path, *sizes: tuple[int, int]) -> Path:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps({"width": width, "height": height}) + "\n" for width, height in sizes))
    return path


# -- steps -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 100), st.one_of(st.none(), st.integers(1, 60)))
def test_the_first_steps_are_those_of_the_schedule(percent, total):
    ratio = Fraction(percent, 100)
    for channel in "AB":
        steps = range(1, 401 if total is None else total + 1)
        expected = [step for step in steps if channel_for_step(step - 1, ratio) == channel][:3]
        assert first_steps(channel, ratio, total) == expected


def test_steps_that_are_due_are_counted_from_one():
    # Every 4 of 10 steps, and at the end
    assert due_steps(Cadence(enabled=True, at_start=False, every_steps=4, total_steps=10)) == [4, 8, 10]
    assert due_steps(Cadence(enabled=True, at_start=False, every_steps=5, total_steps=10)) == [5, 10]
    assert due_steps(Cadence(enabled=True, at_start=False, every_steps=None, total_steps=10)) == [10]
    assert due_steps(Cadence(enabled=False, at_start=False, every_steps=4, total_steps=10)) == []


# -- text ------------------------------------------------------------------------------------------------------------


def test_the_words_of_a_run_on_servers():
    # 100,000 records / 128 = 781 steps and 32 left over; floor(781 / 2) = 390 B steps. Of 6 servers, each of 2 ranks
    # sends 128 / 2 = 64 rollouts: 10 each and 4 more; 4 x 6 / 2 = 12 in flight. 8,192 - 3,072 = 5,120.
    assert rows(look(PROD, rollout_devices=6, records=100_000)) == {
        "batch": "128 samples per step = 1 per rank x 2 ranks x 64 micro-steps",
        "records": "100,000: an epoch is 781 steps, 32 records left over",
        "steps": "781 = 1 epoch",
        "channels": "391 A steps (1, 3, 5, ...) and 390 B steps (2, 4, 6, ...); A comes first",
        "rate": "0.0001, cosine, 20 steps of warm-up",
        "pack": "several samples, at most 8,192 tokens",
        "room": "8,192 tokens for prompt and answer: 3,072 for the answer, 5,120 for image and words",
        "rollouts": "vllm: 6 servers, 6 replicas, at most 4 at once on each replica",
        "requests": "64 rollouts of a rank in a B step, about 11 + 11 + 11 + 11 + 10 + 10 by server,"
        " 12 or more in flight",
        "evaluation": "before the first step, then after step 100, 200, 300, ..., 781 (8 times)",
        "checkpoint": "after step 100, 200, 300, ..., 781 (8 times); the newest 3 are kept",
        "engine": "DeepSpeed, ZeRO stage 2, bf16",
        "idle": "6 of 8 devices wait in 50 % of the steps: 38 % of all device time, if steps last alike",
    }


def test_the_words_of_epochs_that_wrap():
    # 100,000 / 128 = 781.25
    found = rows(look(PROD, "data.epoch_end=wrap", rollout_devices=6, records=100_000))
    assert found["records"] == "100,000: an epoch is 781.25 steps, the last one goes on with the next epoch"
    assert found["steps"] == "781 = 1 epoch"


def test_the_words_of_a_run_by_itself(tmp_path):
    # 70 records / 32 = 2 steps and 6 left over; 5 steps are 2.5 epochs with floor(2.5) = 2 B steps. 32 / 2 = 16
    # rollouts of a rank in ceil(16 / 3) = 6 calls. 128 x 64 pixels are 8 x 4 tokens of 16 x 16: 512 - 256 - 32 = 224.
    data = written(tmp_path, *[(64, 64)] * 69, (128, 64))
    settings = ("training.max_steps=5", "training.warmup_steps=0", f"data.train={data}", "data.validation=null")
    rate, decode = "training.learning_rate=8e-4", "custom.extra.rollout_matching.decode_batch_size=3"
    assert rows(look(QUICKSTART, *settings, "training.packing=false", rate, decode)) == {
        "batch": "32 samples per step = 16 per rank x 2 ranks x 1 micro-step",
        "records": "70: an epoch is 2 steps, 6 records left over",
        "steps": "5 = 2.5 epochs",
        "channels": "3 A steps (1, 3, 5) and 2 B steps (2, 4); A comes first",
        "rate": "0.0008, cosine, 0 steps of warm-up",
        "pack": "one sample, at most 512 tokens",
        "room": "512 tokens for prompt and answer: 256 for the answer, 32 for the largest image, 224 for the words",
        "rollouts": "hf: 16 rollouts of a rank in a B step, in 6 decode calls of at most 3",
        "evaluation": "none: data.validation is not set",
        "checkpoint": "after step 5; the newest is kept",
        "engine": "DeepSpeed, ZeRO stage 1, fp32",
        "idle": "none: no device is for rollouts alone",
    }


def test_a_laptop_without_model_and_data_says_what_it_cannot_know():
    report = look(PROD)
    table = rows(report)
    assert table["records"] == "not known: data/train.jsonl is not on this machine; say how many with --records N"
    assert table["steps"] == "not known without the records: 1 epoch"
    assert table["channels"] == "A steps (1, 3, 5, ...) and B steps (2, 4, 6, ...); A comes first"
    assert table["checkpoint"] == "after every 100 steps and at the end; the newest 3 are kept"
    memory = "memory per learner: no estimate, checkpoints/stage1/config.json is not on this machine"
    assert memory in as_text(report).split("\n")


def test_the_steps_of_max_steps_need_no_records():
    table = rows(look(PROD, "training.max_steps=250"))
    assert table["steps"] == "250"
    assert table["channels"] == "125 A steps (1, 3, 5, ...) and 125 B steps (2, 4, 6, ...); A comes first"
    assert table["checkpoint"] == "after step 100, 200, 250; the newest 3 are kept"


@pytest.mark.parametrize(
    ("b_ratio", "learners", "rollout_devices", "idle"),
    [
        # 6 / 8 x 0.95 = 0.7125; 1 / 2 x 0.71 = 0.355; 384 / 512 x 0.5 = 0.375
        ("0.05", 2, 6, "6 of 8 devices wait in 95 % of the steps: 71 % of all device time, if steps last alike"),
        ("0.5", 128, 384, "384 of 512 devices wait in 50 % of the steps: 38 % of all device time, if steps last alike"),
        ("0", 2, 6, "6 of 8 devices wait in 100 % of the steps: 75 % of all device time, if steps last alike"),
        ("1", 2, 6, "none: every step draws rollouts"),
    ],
)
def test_devices_that_wait_are_named(b_ratio, learners, rollout_devices, idle):
    settings = f"stage2_ab.schedule.b_ratio={b_ratio}"
    assert rows(look(PROD, settings, learners=learners, rollout_devices=rollout_devices))["idle"] == idle


def test_rollout_devices_of_a_run_without_servers_are_warned_of():
    report = look(PROD.with_name("a_only_base.yaml"), rollout_devices=1, learners=1)
    assert rows(report)["idle"].startswith("1 of 2 devices waits in 100 % of the steps: 50 %")
    assert "no step uses a rollout device" in as_text(report).split("\n")[-1]


def test_a_replay_draws_nothing_in_its_b_steps():
    section = "custom.extra.rollout_matching"
    replay = (f"{section}.rollout_backend=replay", f"{section}.replay.run=runs/recorded")
    report = look(QUICKSTART, *replay, rollout_devices=1)
    assert rows(report)["rollouts"] == "replay: 16 rollouts of a rank in a B step, from runs/recorded"
    assert as_data(report)["rollouts"]["decode_calls_per_rank"] is None
    assert "the rollouts are read from files, and no step uses a rollout device" in as_text(report)
    alone = look(QUICKSTART, *replay, "stage2_ab.schedule.b_ratio=0")
    assert rows(alone)["rollouts"].startswith("hf: for evaluations alone")


def test_the_best_of_several_takes_as_many_times_the_rollouts():
    # 16 samples x 3 = 48 = 6 x 8; 64 samples x 3 = 192 = 6 x 32
    section = "custom.extra.rollout_matching"
    best = (f"{section}.best_of=3", f"{section}.decoding.temperature=0.7")
    alone = look(QUICKSTART, *best, f"{section}.decode_batch_size=8")
    wanted = "48 rollouts of a rank in a B step, 3 for each sample"
    assert rows(alone)["rollouts"] == f"hf: {wanted}, in 6 decode calls of at most 8"
    assert (as_data(alone)["samples_per_rank"], as_data(alone)["rollouts"]["per_rank"]) == (16, 48)
    served = look(PROD, *best, rollout_devices=6)
    wanted = "192 rollouts of a rank in a B step, 3 for each sample, about 32 + 32 + "
    assert rows(served)["requests"].startswith(wanted)
    assert as_data(served)["rollouts"]["servers"]["requests_per_server"] == [32] * 6


def test_channels_that_are_alone_or_never_come():
    assert rows(look(PROD, "stage2_ab.schedule.b_ratio=0"))["channels"] == "A alone"
    assert rows(look(PROD, "stage2_ab.schedule.b_ratio=1"))["channels"] == "B alone"
    rare = look(PROD, "stage2_ab.schedule.b_ratio=0.1", "training.max_steps=2", "training.warmup_steps=0")
    assert rows(rare)["channels"] == "2 A steps (1, 2) and no B step; A comes first"
    assert any("none of them trains Channel B" in warning for warning in rare.warnings)


def test_many_servers_are_summed_up():
    # 9 servers of one replica: 64 = 9 x 7 + 1
    servers = ", ".join(f"{{base_url: http://host{number}:8000}}" for number in range(9))
    asked = look(PROD, f"custom.extra.rollout_matching.vllm.server.servers=[{servers}]")
    assert rows(asked)["requests"].startswith("64 rollouts of a rank in a B step, about 7 to 8 for each by server, ")
    assert asked.rollout_devices == 9


def test_memory_comes_as_a_sum():
    settings = (f"model.path={STAGE1}", "training.max_steps=5", "training.warmup_steps=0")
    report = look(PROD, *settings)
    text = as_text(report)
    # bf16: 2 x (1,797,024 + adapters); adapters of rank 32: 2,432 x 32 x 4 layers = 311,296; 4,216,640 / 2^20 = 4.0
    assert "  weights          4.0 MiB  2,108,320 parameters" in text
    # 4,096 positions; the config's 1,048,576 pixels are 4,096 squares of 16 x 16
    assert rows(report)["room"] == (
        "4,096 tokens (the model's limit) for prompt and answer: 3,072 for the answer, 4,096 for any image:"
        " some may be too long"
    )
    assert "  gradients        0.6 MiB  of 311,296 that train" in text  # 4 x 311,296 / 2 learners = 622,592
    assert "  optimizer        1.8 MiB  adamw" in text  # 12 x 311,296 / 2 = 1,867,776
    # the bucket: 2 x 500,000,000, and 4 x 311,296 = 1,245,184 of what it holds in fp32
    assert report.memory.total == sum((4_216_640, 622_592, 1_867_776, 1_001_245_184, report.memory.activations))


def test_sizes_are_readable():
    assert [in_words(size) for size in (3 * 2**19, 2**30, 5 * 2**29)] == ["1.5 MiB", "1.0 GiB", "2.5 GiB"]


# -- data ------------------------------------------------------------------------------------------------------------


def test_the_same_as_data():
    data = json.loads(json.dumps(as_data(look(PROD, rollout_devices=6, records=1280))))
    assert (data["total_steps"], data["epochs"], data["b_steps"]) == (10, 1.0, 5)
    assert (data["first_a_steps"], data["first_b_steps"]) == ([1, 3, 5], [2, 4, 6])
    assert data["checkpoint_after_steps"] == [10]
    assert data["evaluation"] == {"at_start": True, "after_steps": [10]}
    servers = data["rollouts"]["servers"]
    assert servers["replicas"] == [1] * 6
    assert servers["requests_per_server"] == [11, 11, 11, 11, 10, 10]
    assert servers["slots_of_each_rank"] == [[2] * 6] * 2  # 4 places of each server for 2 ranks
    assert (servers["infer_timeout_s"], servers["probe_tolerance"], servers["sync_mode"]) == (600.0, 0.05, "full")
    assert data["idle"] == {"devices": 6, "share_of_steps": 0.5, "share_of_device_time": 0.375}
    assert data["deepspeed_config"]["gradient_accumulation_steps"] == 64
    assert data["memory_per_learner"] is None


def test_what_is_not_known_is_null():
    data = as_data(look(PROD))
    unknown = ("num_records", "total_steps", "epochs", "b_steps", "checkpoint_after_steps", "steps_per_epoch")
    assert [data[name] for name in unknown] == [None] * 6
    assert data["evaluation"] == {"at_start": True, "after_steps": None}


# -- refusals --------------------------------------------------------------------------------------------------------


def test_every_problem_of_file_and_topology_comes_at_once():
    with pytest.raises(ConfigError) as raised:
        look(PROD, "training.sed=3", "training.learning_rate=0", learners=3)
    text = str(raised.value)
    assert "did you mean" in text
    assert "training.learning_rate" in text
    assert "128 is not a multiple of 3" in text


def test_too_few_records_are_refused():
    with pytest.raises(ConfigError, match=r"one step takes 128 samples, and .* holds 127 records"):
        look(PROD, records=127)


def test_a_number_of_records_that_the_file_contradicts_is_refused(tmp_path):
    data = written(tmp_path, *[(64, 64)] * 40)
    settings = (f"data.train={data}", "training.max_steps=30", "data.validation=null")
    with pytest.raises(ConfigError, match=r"41 contradicts .* holds 40 records"):
        look(QUICKSTART, *settings, records=41)
    assert look(QUICKSTART, *settings, records=40).num_records == 40


def test_a_broken_line_of_the_data_is_the_datas_fault(tmp_path):
    data = written(tmp_path, (64, 64))
    data.write_text(data.read_text() + "oops\n")
    with pytest.raises(DataError) as raised:
        look(QUICKSTART, f"data.train={data}")
    assert raised.value.where == f"{data}:2"


def test_an_image_too_large_for_the_answer_is_refused(tmp_path):
    # 256 x 256 pixels are 256 tokens, and 256 new ones: 512, no word of the prompt fits
    settings = (f"data.train={written(tmp_path, *[(256, 256)] * 32)}", "data.validation=null")
    with pytest.raises(ConfigError, match="256 new tokens do not fit beside the largest image, which has 256"):
        look(QUICKSTART, *settings)
    # Channel A alone answers nothing.
    table = rows(look(QUICKSTART, *settings, "stage2_ab.schedule.b_ratio=0"))
    assert table["room"].endswith("some may be too long")


@pytest.mark.parametrize("codec", ["array", "compact"])
@pytest.mark.parametrize("line", ["[" * 100_000, None], ids=["nested", "folder"])
def test_held_out_data_that_cannot_be_read_are_the_datas_fault(tmp_path, codec, line):
    """Whether or not descriptions are looked at before the sizes."""
    if line is not None:
        (tmp_path / "held_out.jsonl").write_text(f"{line}\n")
    held_out = tmp_path if line is None else tmp_path / "held_out.jsonl"
    absent = f"data.train={tmp_path / 'absent.jsonl'}"  # also where the quickstart's has been made
    with pytest.raises(DataError) as raised:
        look(QUICKSTART, absent, f"data.codec={codec}", f"data.validation={held_out}", records=64)
    assert raised.value.where.startswith(str(held_out))


@pytest.mark.parametrize("key", ["data.train", "data.validation"])
def test_an_image_that_the_processor_refuses_is_named_with_its_line(tmp_path, key):
    data = written(tmp_path, *[(64, 64)] * 32, (2, 600))
    with pytest.raises(DataError, match=r"the image is 2 x 600 pixels: .*200:1") as caught:
        look(QUICKSTART, f"{key}={data}")
    assert caught.value.where == f"{data}:33"
    # a run may be told to go on without training images
    if key == "data.train":
        warnings = look(QUICKSTART, f"{key}={data}", "data.on_bad_sample=skip").warnings
        assert [warning for warning in warnings if "1 of 33 images cannot be used" in warning and ":33" in warning]


def test_learners_default_to_what_the_config_speaks_of():
    report = look(PROD, "training.gradient_accumulation_steps=16", learners=None)
    assert report.plan.learners == 8
    assert look(PROD, learners=None).plan.learners == 1
    assert replace(report, rollout_devices=24).waiting_time == 0.5 * 24 / 32


@pytest.mark.parametrize("name", ["train", "validation"])
def test_a_description_that_is_an_added_token_is_refused_as_by_the_run(tmp_path, name):
    """The tokenizer of the quickstart with one token more, whose text no "<" begins."""
    model = tmp_path / "model"
    shutil.copytree(STAGE1, model, ignore=shutil.ignore_patterns("*.safetensors"))
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({"id": 1, "content": "caf\u00e9", "special": False})
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    record = {"images": ["a.png"], "width": 64, "height": 64, "objects": [{"desc": "a cafe\u0301", "bbox_2d": [1] * 4}]}
    lines = [json.dumps({**record, "objects": []})] * 32
    (tmp_path / "good.jsonl").write_text("\n".join(lines))
    (tmp_path / "bad.jsonl").write_text("\n".join([*lines, json.dumps(record)]))
    files = [f"data.{key}={tmp_path / ('bad' if key == name else 'good')}.jsonl" for key in ("train", "validation")]
    with pytest.raises(DataError, match="holds 'caf\u00e9', which is an added token") as caught:
        look(QUICKSTART, f"model.path={model}", *files)
    assert caught.value.where == f"{tmp_path / 'bad.jsonl'}:33"
    assert look(QUICKSTART, *files).num_records == (33 if name == "train" else 32)  # the checkpoint as it is

"""A run of both channels on records with prompts of their own, and a place for names in the others'."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest

from ds_stage2ab.data.asked import Asked
from ds_stage2ab.data.records import read_records
from ds_stage2ab.data.stream import evaluation_draw
from ds_stage2ab.engine.build import position_index
from ds_stage2ab.metrics.journal import read_history
from ds_stage2ab.rollout.hf import HfBackend
from ds_stage2ab.rollout.record import prompt_digest
from tests import ranks
from tests.parts import config_values, merged, write_config
from tests.unit.parts import greedy_sampling, load_bench

OWN, TEMPLATE = "Which digits are here?", "Find: {classes}."
STEPS, SEED, NUM_HELD_OUT = 2, 7, 4


@pytest.fixture(scope="module")
def ran(shipped, tmp_path_factory):
    """The run's folder, its training records by id, and what it said."""
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "images").symlink_to(shipped.data / "images")
    for name in ("train", "validation"):
        lines = [json.loads(line) for line in (shipped.data / f"{name}.jsonl").read_text().splitlines()]
        own = [{**line, "prompt": OWN} if place % 3 == 0 else line for place, line in enumerate(lines)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, own)))
    changes = {
        "data.train": str(folder / "train.jsonl"),
        "data.validation": str(folder / "validation.jsonl"),
        "data.user_prompt": TEMPLATE,
        "training.seed": SEED,
        "data.negative_classes": 2,
        "stage2_ab.schedule.b_ratio": 0.5,
        "training.max_steps": STEPS,
        "evaluation.at_start": False,
        "evaluation.max_samples": NUM_HELD_OUT,
        "logging.rollouts": True,
    }
    config = write_config(folder / "c.yaml", merged(config_values(shipped, folder, "run"), changes))
    done = ranks.train(config, ranks=1)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    records = read_records(folder / "train.jsonl", image_root=None, box_format="bins")
    return folder / "run", {record.id: record for record in records}, done.stdout


def test_each_rollout_was_asked_by_its_records_prompt(ran, shipped):
    """Of its draw: the names of its digits and two others, in alphabetical order, or its own prompt."""
    folder, records, _ = ran
    encoder = load_bench(shipped, num_samples=0).encoder
    asked = Asked.of(records.values(), TEMPLATE, 2, SEED)
    files = [file.read_text().splitlines() for file in (folder / "rollouts").glob("*.jsonl")]
    lines = [json.loads(line) for file in files for line in file]
    assert len(lines) == 8
    num_own = 0
    for line in lines:
        sample = encoder.encode(asked(records[line["sample_id"]], line["draw"]), line["draw"])
        assert line["prompt_digest"] == prompt_digest(sample.prompt_ids)
        num_own += sample.user_prompt == OWN
        if sample.user_prompt != OWN:
            names = sample.user_prompt.removeprefix("Find: ").removesuffix(".").split(", ")
            present = {one.desc for one in sample.objects}
            assert present < set(names) and len(names) == len(present) + 2 and names == sorted(names)
    assert 0 < num_own < 8


def test_the_run_trains_evaluates_and_says_that_the_checkpoint_was_asked_otherwise(ran):
    folder, _, said = ran
    history = read_history(folder / "metrics.jsonl")
    assert [(step.channel, step.applied) for step in history.steps] == [("A", True), ("B", True)]
    assert [one.metrics["eval/samples"] for one in history.evaluations] == [4]
    assert 'data.user_prompt is "Find: {classes}.", and the checkpoint was trained with "Detect every digit."' in said
    checkpoint = folder / "checkpoints" / f"step-{STEPS:06d}" / "hf" / "detector.json"
    assert json.loads(checkpoint.read_text())["user_prompt"] == TEMPLATE


def test_the_evaluation_asked_by_the_same_rules(ran, shipped):
    """The checkpoint, asked here by the prompts of the evaluation's draws, gives the answers that the run wrote."""
    folder, _, _ = ran
    bench = load_bench(replace(shipped, model=folder / "checkpoints" / f"step-{STEPS:06d}" / "hf"), num_samples=0)
    records = read_records(folder.parent / "validation.jsonl", image_root=None, box_format="bins")[:NUM_HELD_OUT]
    asked, draws = Asked.of(records, TEMPLATE, 2, SEED), [evaluation_draw(place) for place in range(NUM_HELD_OUT)]
    pairs = zip(records, draws, strict=True)
    samples = [bench.encoder.encode(asked(record, draw), draw) for record, draw in pairs]
    assert {sample.user_prompt == OWN for sample in samples} == {True, False}
    positions = position_index(bench.model)
    settings = {"decode_batch_size": 4, "start_id": "s", "seed": SEED}
    backend = HfBackend(lambda: nullcontext(bench.model), bench.vocabulary, positions, **settings)
    with backend.current_weights(0):
        answers = backend.generate(samples, greedy_sampling(max_new_tokens=80), finished_steps=0)
    lines = (folder / "evaluations" / f"step-{STEPS:06d}.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == [
        bench.vocabulary.written_all(answer.response_ids).decode(errors="replace") for answer in answers
    ]

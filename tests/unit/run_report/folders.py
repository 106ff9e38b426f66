"""Run folders as a run writes them, with figures that can be counted by hand."""

import json
from pathlib import Path

from PIL import Image

from ds_stage2ab.carriers import Record, Truth
from ds_stage2ab.evaluation.answers import answer_line, save_answers
from ds_stage2ab.evaluation.detected import Detected
from ds_stage2ab.evaluation.f1 import score_image
from ds_stage2ab.metrics.journal import EvaluationRecord, StepRecord, to_line

FORGED = "<b>x</b>\x1b[2J"
"""A name that would be markup, and control a terminal."""
CAT, DOG, FAR = (10, 10, 300, 300), (400, 400, 800, 900), (900, 0, 990, 90)
STEPS, EVALUATED = 40, (0, 20, 40)


def run_folder(folder: Path, name: str, *, with_b: bool = True, f1: float = 0.6) -> Path:
    """40 steps, of A and B in turn, and three evaluations of three images."""
    run = folder / name
    run.mkdir(parents=True)
    records = [_step(number, "B" if with_b and number % 2 == 0 else "A") for number in range(1, STEPS + 1)]
    records += [_evaluation(number, f1 + number / 400) for number in EVALUATED]
    records.sort(key=lambda record: (record.step, isinstance(record, EvaluationRecord)))
    (run / "metrics.jsonl").write_text("".join(map(to_line, records)))
    (run / "config.json").write_text(json.dumps(_config(name, with_b=with_b)))
    origins = {"training.seed": "my.yaml:7", "logging.name": f"--set logging.name={name}", "model.path": "default"}
    (run / "origins.json").write_text(json.dumps(origins))
    (run / "environment.json").write_text(json.dumps({"hosts": "here", "torch": "2.13.0", "cuda": None}))
    start = {"attempt": 1, "start_id": "0", "finished_steps": 0, "host": "here", "pid": 7, "wall_time": 40.0}
    (run / "attempts.jsonl").write_text(json.dumps(start) + "\n")
    (run / "warnings.log").write_text(f"2026-01-02 03:04:05 sample {FORGED} skipped\n")
    images = [_image(folder / "images", place) for place in range(3)]
    for number in EVALUATED:
        save_answers(run / "evaluations", number, answers(images, number))
    return run


def answers(images: list[Path], number: int) -> list[dict]:
    """Of two cats and two dogs: one of each right, one cat called a dog; a forged name that is nowhere; no answer."""
    first = _line("one", images[0], [("cat", CAT), ("dog", DOG)], [("Cat ", CAT), ("dog", DOG)], [0.5, 0.25])
    second = _line("two", images[1], [("cat", CAT)], [("dog", CAT), (FORGED, FAR)], [0.125, 0.0625])
    third = _line("three", images[2], [("dog", DOG)], [], [], state="malformed", finish="length")
    return [first, second, third] if number else [first, third]


def _line(key, image, truth, predicted, scores, *, state="ok", finish="stop"):
    objects, found = ([Truth(desc=name, box=box) for name, box in some] for some in (truth, predicted))
    record = Record(id=key, image=image, width=64, height=48, objects=tuple(objects), where=f"set.jsonl:{key}")
    answer = Detected(
        predicted=tuple(found),
        scores=scores,
        token_scores=scores,
        ranked="by_probability",
        dropped=(),
        well_formed=True,
        text="[]",
        state=state,
        finish=finish,
        num_tokens=1,
        coordinate_mass=(0.0, 0),
    )
    return answer_line(record, answer, score_image(found, objects))


def _image(folder: Path, place: int) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / f"{place}.png"
    Image.new("RGB", (64, 48), (60 * place, 90, 120)).save(file)
    return file


def _step(number: int, channel: str) -> StepRecord:
    metrics = {"loss/total": 5 - number / 20, "loss/coord_ce": 2.0, "train/learning_rate": 1e-4, "time/step_s": 1.0}
    if channel == "B":
        metrics |= {"match/f1": 0.5, "match/predicted_per_true": 1 + number / 20, "coord/mass": 0.99}
        metrics |= {"parse/ok": 0.75, "parse/empty_answer": 0.125}
    return StepRecord(
        step=number, channel=channel, applied=True, metrics=metrics, skipped=(), wall_time=100.0 + number
    )


def _evaluation(number: int, f1: float) -> EvaluationRecord:
    metrics = {"eval/ap_by_probability": f1 / 2, "eval/f1": f1, "eval/predicted_per_true": 1.0}
    return EvaluationRecord(step=number, metrics=metrics, wall_time=100.5 + number)


def _config(name: str, *, with_b: bool) -> dict:
    limits = {"predicted_per_true": {"warn": 2.0, "stop": None}, "valid_rate": {"warn": 0.5, "stop": 0.25}}
    section = {"schedule": {"b_ratio": 0.5 if with_b else 0.0}, "channel_b": {"health": limits}}
    return {"training": {"seed": 1}, "stage2_ab": section, "model": {"path": "m"}, "logging": {"name": name}}

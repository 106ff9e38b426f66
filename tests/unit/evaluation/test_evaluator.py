"""Whole evaluations of the tiny model and of written answers."""

import json
import re
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from PIL import Image

from ds_stage2ab.carriers import Probabilities, Rollout
from ds_stage2ab.codec.text import encode_answer, get_codec
from ds_stage2ab.data.records import read_records
from ds_stage2ab.engine.build import position_index
from ds_stage2ab.errors import NoServerLeft
from ds_stage2ab.evaluation.evaluator import Evaluator
from ds_stage2ab.evaluation.held_out import HeldOut
from ds_stage2ab.formats.export_coco import export_coco
from ds_stage2ab.matching.parse import parse_rollout
from ds_stage2ab.metrics.registry import METRICS, check_channel
from ds_stage2ab.rollout.hf import HfBackend
from tests.parts import as_tuples
from tests.unit.parts import greedy_sampling, load_bench

SAMPLING = greedy_sampling(max_new_tokens=6, with_probabilities=True)
NUM_VALIDATION = 12


@dataclass
class Scripted:
    """A backend that answers from a table: sample id -> (response ids, finish)."""

    answers: dict
    probabilities: Probabilities | None = None
    sizes: list = field(default_factory=list)
    score: None = None
    generate_lazily: None = None

    def current_weights(self, finished_steps):
        return nullcontext()

    def generate(self, samples, sampling, *, finished_steps):
        self.sizes.append(len(samples))
        return [
            Rollout(
                sample_id=sample.id, draw=sample.draw, prompt_ids=sample.prompt_ids,
                response_ids=self.answers[sample.id][0],
                finish=self.answers[sample.id][1],
                weight_version=f"scripted/{finished_steps}",
                seed=0, source="scripted", seconds=0.0, attempt=1,
                probabilities=self.probabilities,
            )
            for sample in samples
        ]


@pytest.fixture(scope="module")
def bench(quickstart):
    return load_bench(quickstart, num_samples=1)


@pytest.fixture(scope="module")
def records(quickstart):
    found = read_records(quickstart.data / "validation.jsonl", image_root=None, box_format="bins")
    assert len(found) == NUM_VALIDATION
    return found


@pytest.fixture
def evaluator(bench, records, world, tmp_path):
    """Makes an evaluator; the diary gets (sample id, draw) of whatever is encoded."""

    def build(backend, *, num_pictures=0, diary=None, warnings=None, answers=None):
        def encode(record, draw):
            if diary is not None:
                diary.append((record.id, draw))
            return bench.encoder.encode(record, draw)

        return Evaluator(
            records,
            encode,
            backend,
            SAMPLING,
            codec=get_codec("array"),
            vocabulary=bench.vocabulary,
            world=world,
            pictures=tmp_path / "pictures",
            num_pictures=num_pictures,
            warn=(warnings if warnings is not None else []).append,
            answers=answers,
        )

    return build


def truth_of(record, bench):
    """The answer that teaches a record's objects, as a rollout would give it: without the stop."""
    return as_tuples(encode_answer(record.objects, bench.vocabulary, get_codec("array"))).ids[:-1]


def test_figures_are_the_declared_ones(bench, records, evaluator):
    declared = {name for name in METRICS if name.startswith("eval/")}
    answers = {one.id: (truth_of(one, bench), "stop") for one in records}
    without = evaluator(Scripted(answers)).run(0).figures
    check_channel(without, "eval")
    by_scores = ("_by_probability", "_by_score", "_percent", "/best_f1", "/best_f1_threshold", "/calibration_error")
    needing_scores = {name for name in declared if name.endswith(by_scores)}
    assert declared - set(without) == {"eval/coord_mass", "eval/lvis_ap_unranked", *needing_scores}


def test_answers_are_written_one_line_each(bench, records, evaluator, tmp_path):
    """Every held-out image in its order; COCO's JSON is made of the file as it is."""
    ids = truth_of(records[0], bench)
    known = Probabilities(log_probs=np.full(len(ids) - 3, -0.01), coordinate_mass=np.ones(len(ids) - 3))
    scripted = {one.id: (truth_of(one, bench), "stop") for one in records}
    evaluator(Scripted(scripted), answers=tmp_path / "evaluations").run(100)
    lines = [json.loads(line) for line in (tmp_path / "evaluations" / "step-000100.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [one.id for one in records]
    for line, one in zip(lines, records, strict=True):
        truth = [{"desc": truth.desc, "bbox_2d": list(truth.box)} for truth in one.objects]
        assert line["truth"] == truth
        assert line["objects"] == [{**found, "score": None} for found in truth]
        assert sorted(line["pairs"]) == [[place, place] for place in range(len(truth))]
        assert (line["image"], line["state"], line["finish"]) == (str(one.image), "ok", "stop")
        assert json.loads(re.sub(r"<[|]coord_(\d+)[|]>", r"\1", line["text"])) == {"objects": truth}

    cut = Scripted({one.id: (ids[:-3], "length") for one in records}, known)
    evaluator(cut, answers=tmp_path / "evaluations").run(200)
    line = json.loads((tmp_path / "evaluations" / "step-000200.jsonl").read_text().splitlines()[0])
    assert (line["state"], line["finish"]) != ("ok", "stop")
    assert all(0.5 < found["score"] < 1 for found in line["objects"])
    for name, step in (("a", 100), ("b", 200)):
        export_coco(tmp_path / "evaluations" / f"step-{step:06d}.jsonl", tmp_path / f"{name}.json", None)


def test_answers_that_cannot_be_written_are_a_warning(bench, records, evaluator, tmp_path):
    warnings = []
    (tmp_path / "evaluations").write_text("a file")
    answers = {one.id: (truth_of(one, bench), "stop") for one in records}
    found = evaluator(Scripted(answers), answers=tmp_path / "evaluations", warnings=warnings).run(0)
    assert found.figures["eval/f1"] == 1
    assert len(warnings) == 1 and warnings[0].startswith("the answers are not written: ")


def test_scores_are_products_of_probabilities(bench, records, evaluator):
    """The tokens of each object alone, from its first byte on; the mass where coordinates stand."""
    ids = truth_of(records[0], bench)
    log_probs = np.linspace(-0.3, -0.1, len(ids), dtype=np.float32)
    mass = np.linspace(0.5, 1.0, len(ids), dtype=np.float32)
    known = Probabilities(log_probs=log_probs, coordinate_mass=mass)
    backend = Scripted({one.id: (ids, "stop") for one in records}, known)
    found = evaluator(backend).run(0).figures
    places = [place for place, token in enumerate(ids) if token in bench.vocabulary.coordinate_bins]
    assert found["eval/coord_mass"] == pytest.approx(mass[places].mean())
    assert "eval/ap_by_probability" in found and "eval/ap_unranked" not in found
    judge = evaluator(backend)
    first_alone = HeldOut(records, bench.encoder.encode, range(1))
    one = judge._outcome(0, *judge._rollouts(first_alone, 0, "a test"))
    first = parse_rollout(ids, bench.vocabulary, get_codec("array")).objects[0]
    assert one.scores[0] == pytest.approx(np.exp(log_probs[first.tokens[0] : first.tokens[1]].sum()))


def test_the_tiny_model_is_evaluated_on_every_record_once(bench, records, evaluator):
    diary = []
    settings = {"decode_batch_size": 4, "start_id": "start", "seed": 0}
    backend = HfBackend(lambda: nullcontext(bench.model), bench.vocabulary, position_index(bench.model), **settings)
    found = evaluator(backend, diary=diary).run(7).figures
    asked = [(record.id, -1 - index) for index, record in enumerate(records)]
    assert sorted(diary) == sorted(asked)
    numbers = [len(records[-1 - draw].objects) for _, draw in diary]
    assert numbers == sorted(numbers, reverse=True) != [numbers[0]] * len(numbers)
    assert found["eval/samples"] == NUM_VALIDATION
    # random weights write no bracket: each answer is cut at the limit of 6 tokens
    assert (found["eval/truncation_rate"], found["eval/parse_ok_rate"], found["eval/f1"]) == (1.0, 0.0, 0.0)
    tokens = found["eval/generated_tokens_per_second"] * found["eval/seconds"]
    assert tokens == pytest.approx(NUM_VALIDATION * 6)


def test_the_truth_scores_one(bench, records, evaluator):
    backend = Scripted({record.id: (truth_of(record, bench), "stop") for record in records})
    found = evaluator(backend).run(0).figures
    perfect = "f1 precision recall f1_boxes matched_iou parse_ok_rate predicted_per_true ap_unranked"
    assert [found[f"eval/{name}"] for name in perfect.split()] == pytest.approx([1.0] * 8)
    assert found["eval/truncation_rate"] == 0.0


def test_half_the_truth_scores_by_counting(bench, records, evaluator):
    # the first half is right, the second half empty, its last answer cut by the limit before it began
    half = NUM_VALIDATION // 2
    answers = {record.id: (truth_of(record, bench), "stop") for record in records[:half]}
    empty = tuple(bench.vocabulary.encode('{"objects": []}'))
    answers |= {record.id: (empty, "stop") for record in records[half:]}
    answers[records[-1].id] = ((), "length")
    found = evaluator(Scripted(answers)).run(0).figures
    right = sum(len(record.objects) for record in records[:half])
    true = sum(len(record.objects) for record in records)
    assert 0 < right < true
    assert found["eval/recall"] == right / true
    assert found["eval/precision"] == 1.0
    assert found["eval/f1"] == 2 * right / (right + true)
    assert found["eval/parse_ok_rate"] == 11 / 12  # an empty list is well-formed, nothing at all is not
    assert found["eval/truncation_rate"] == 1 / 12


def test_an_answer_without_the_stop_is_not_well_formed(bench, records, evaluator):
    # closed and complete, but the model went on to the limit without ending its turn
    backend = Scripted({record.id: (truth_of(record, bench), "length") for record in records})
    assert [evaluator(backend).run(0).figures[name] for name in ("eval/f1", "eval/parse_ok_rate")] == [1.0, 0.0]


def test_a_backend_reads_the_samples_itself_and_each_answer_is_scored_before_the_next(bench, records, evaluator):
    """Of images no more are in memory than are asked about; what reads lazily is asked once, and scores itself."""
    diary = []
    backend = Scripted({record.id: (truth_of(record, bench), "stop") for record in records})
    answer = backend.generate

    def one_by_one(samples, *rest, **named):
        for place in range(len(samples)):
            yield from answer([samples[place]], *rest, **named)

    backend.generate = one_by_one
    backend.score = lambda sample, response: diary.append(("scored", sample.id))
    assert evaluator(backend, diary=diary).run(0).figures["eval/samples"] == NUM_VALIDATION
    longest_first = sorted(records, key=lambda one: -len(one.objects))
    encoded = [(one.id, -1 - records.index(one)) for one in longest_first]
    assert diary == [line for one in encoded for line in (one, one, ("scored", one[0]))]
    backend.generate_lazily = lambda samples, *rest, **named: answer(list(samples), *rest, **named)
    backend.sizes.clear()
    assert evaluator(backend).run(0).figures["eval/samples"] == NUM_VALIDATION
    assert backend.sizes == [NUM_VALIDATION]


def test_answers_go_on_behind_servers_that_came_back(bench, records, evaluator, monkeypatch):
    """Where this rank has none left, and where another has none: an answer that is there already is kept."""
    backend = Scripted({record.id: (truth_of(record, bench), "stop") for record in records})
    answer, diary = backend.generate, []

    def with_losses(samples, *rest, **named):
        found = answer(list(samples), *rest, **named)
        yield from (*found[:3], NoServerLeft("gone"), NoServerLeft("gone again"), *found[3:])

    backend.generate, backend.recover = with_losses, diary.append
    assert evaluator(backend).run(7).figures["eval/f1"] == 1
    assert diary == [7, 7]

    judge = evaluator(backend)
    monkeypatch.setattr(judge.world, "all_reduce_max", lambda failed, lost: [failed, int(len(diary) < 4)])
    found = judge._next(iter(answer([bench.encoder.encode(records[0], -1)], None, finished_steps=7)), 7)
    assert found.sample_id == records[0].id and diary == [7] * 4


def test_the_first_records_are_drawn(bench, records, evaluator, tmp_path):
    backend = Scripted({record.id: (truth_of(record, bench), "stop") for record in records})
    evaluator(backend, num_pictures=3).run(7)
    folder = tmp_path / "pictures"
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    drawn = [f"step_000007/{index:02d}_validation-{index:06d}.png" for index in range(3)]
    assert names == ["step_000007.png", *drawn]
    for name in names:
        with Image.open(folder / name) as picture:
            red, green, _ = picture.convert("RGB").split()
            assert red.tobytes() != green.tobytes()  # boxes are drawn in colour on grey digits


def test_no_pictures_are_drawn_when_none_are_wanted(bench, records, evaluator, tmp_path):
    backend = Scripted({record.id: (truth_of(record, bench), "stop") for record in records})
    evaluator(backend, num_pictures=0).run(7)
    assert not (tmp_path / "pictures").exists()


def test_a_picture_that_cannot_be_written_costs_no_figure(bench, records, evaluator, tmp_path):
    """The work is done by then: a file in the way of the folder is a warning, and so is an image that has gone."""
    backend = Scripted({record.id: (truth_of(record, bench), "stop") for record in records})
    warnings = []
    (tmp_path / "pictures").write_text("in the way")
    found = evaluator(backend, num_pictures=2, warnings=warnings).run(7)
    assert found.figures["eval/f1"] == 1
    (warning,) = warnings
    assert warning.startswith("the pictures are not drawn: ") and "pictures" in warning


def test_a_long_sample_id_is_a_file_name_all_the_same(bench, records, evaluator, tmp_path):
    """Two that differ in their last letter are two files."""
    backend = Scripted({f"{'x' * 290}{n}": (truth_of(record, bench), "stop") for n, record in enumerate(records)})
    warnings = []
    built = evaluator(backend, num_pictures=2, warnings=warnings)
    built.records = [replace(record, id=f"{'x' * 290}{n}") for n, record in enumerate(records)]
    built.run(7)
    assert warnings == []
    names = [path.name for path in (tmp_path / "pictures" / "step_000007").iterdir()]
    assert len({name.partition("_")[2] for name in names}) == 2 and max(map(len, names)) < 120

"""What computes on a GPU never mixes it with the CPU, shown by a fake one: see `tests/fake_device.py`."""

import inspect
import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2VLImageProcessorPil

from ds_stage2ab.carriers import Vision
from ds_stage2ab.codec.text import get_codec
from ds_stage2ab.config.sections import RepeatTerminateSection, TunerSection
from ds_stage2ab.engine import tuner as tuners
from ds_stage2ab.engine.build import position_index
from ds_stage2ab.engine.export import export
from ds_stage2ab.engine.tuner import add_adapters
from ds_stage2ab.engine.whole_model import WholeModel
from ds_stage2ab.packs.collate import collate
from ds_stage2ab.rollout import scoring
from ds_stage2ab.rollout.decoding import capture, loop, passes
from ds_stage2ab.rollout.decoding.choice import Chooser
from ds_stage2ab.rollout.hf import HfBackend
from ds_stage2ab.rollout.scoring import Scorer
from ds_stage2ab.rollout.server import logprob_probe
from ds_stage2ab.rollout.server.api import ServerApi
from ds_stage2ab.rollout.server.logprob_probe import Probe
from ds_stage2ab.runtime.ranks import World
from tests.fake_device import GPU, FakeDevice, Mixture
from tests.fake_graph import FakeGraphs
from tests.fakes import FakeServer
from tests.unit.parts import greedy_sampling, load_bench
from tests.unit.serving import LONG, needs_of

RESPONSE = (11, 12, 300, 13)
GUARD = RepeatTerminateSection(max_token_run=40, ngram_size=8, max_ngram_repeats=9, max_objects=30)
EVERYTHING = greedy_sampling(
    max_new_tokens=6,
    temperature=0.7,
    top_p=0.9,
    top_k=50,
    repetition_penalty=1.1,
    repeat_terminate=GUARD,
    with_probabilities=True,
)
"""Every logits processor there is."""


@pytest.fixture(scope="module")
def on_host(quickstart):
    """The model that stays on the CPU, for the numbers that are expected."""
    return load_bench(quickstart, num_samples=3)


@pytest.fixture
def gpu() -> Iterator[FakeDevice]:
    with FakeDevice() as mode:
        yield mode


@pytest.fixture
def bench(quickstart, gpu):
    return load_bench(quickstart, num_samples=3)


@pytest.fixture
def away(world):
    """The one rank, with the fake device."""
    there = object.__new__(World)
    there.__dict__.update(world.__dict__, device=str(GPU))
    return there


# --- what is computed there is what the CPU computes ------------------------------------------------------------


def answers(bench, whole_model):
    settings = {"decode_batch_size": 2, "start_id": "start", "seed": 3, "codec": get_codec("array")}
    backend = HfBackend(whole_model, bench.vocabulary, position_index(bench.model), **settings)
    with backend.current_weights(0):
        return backend.generate(bench.samples, EVERYTHING, finished_steps=0)


def whole_model_of(bench, world: World) -> WholeModel:
    """As a run under ZeRO 3 does it: the layout is made where the model was loaded, then the engine moves the model."""
    whole_model = WholeModel(bench.model, world, is_partitioned=True)
    bench.model.to(world.device)
    return whole_model


def test_rollouts_of_a_gathered_model(bench, on_host, away, world):
    seen = answers(bench, whole_model_of(bench, away))
    expected = answers(on_host, WholeModel(on_host.model, world, is_partitioned=False))
    assert [one.response_ids for one in seen] == [one.response_ids for one in expected]
    for one, other in zip(seen, expected, strict=True):
        np.testing.assert_allclose(one.probabilities.log_probs, other.probabilities.log_probs, rtol=1e-5)


def test_rollouts_of_the_model_itself(bench, on_host, away, world):
    bench.model.to(GPU)
    seen = answers(bench, WholeModel(bench.model, away, is_partitioned=False))
    expected = answers(on_host, WholeModel(on_host.model, world, is_partitioned=False))
    assert [one.response_ids for one in seen] == [one.response_ids for one in expected]


class CountingDevice(FakeDevice):
    """Notes what makes the host wait for the device."""

    WAITS = ("tolist", "item", "cpu", "__int__", "__bool__", "__float__", "__index__", "nonzero", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ in self.WAITS and any(isinstance(one, torch.Tensor) and self.is_there(one) for one in args):
            self.waits.append(func.__name__)
        return super().__torch_function__(func, types, args, kwargs)


def test_the_host_waits_once_in_a_pass_of_answers(quickstart, world, monkeypatch):
    """With penalty, guard, noise and probabilities; a pass with images asks for their sizes too."""
    counted, make_pass = [], loop.make_pass
    with CountingDevice() as device:

        def noted(rows, *args, **kwargs):
            made = make_pass(rows, *args, **kwargs)
            counted.append((not all(row.num_cached for row in rows), len(device.waits)))
            return made

        monkeypatch.setattr(loop, "make_pass", noted)
        away = object.__new__(World)
        away.__dict__.update(world.__dict__, device=str(GPU))
        bench = load_bench(quickstart, num_samples=3)
        answers(bench, whole_model_of(bench, away))
        counted.append((True, len(device.waits)))
    waits = [after - before for (new, before), (_, after) in pairwise(counted) if not new]
    assert len(waits) > 5 and {*waits} == {1}, device.waits


def test_passes_there_that_cannot_be_captured(bench, on_host, away, world, monkeypatch):
    """In the static form too nothing is mixed; that this torch has no graphs is said once."""
    monkeypatch.setattr(capture, "ORDINARY", 0)
    whole_model = whole_model_of(bench, away)
    with pytest.warns(RuntimeWarning, match="are not captured.*: torch.cuda.Stream requires CUDA support") as warned:
        seen = answers(bench, whole_model)
    assert len(warned) == 1
    expected = answers(on_host, WholeModel(on_host.model, world, is_partitioned=False))
    assert [one.response_ids for one in seen] == [one.response_ids for one in expected]


@pytest.mark.soak
def test_passes_there_that_are_captured(bench, on_host, away, world, monkeypatch, recwarn):
    monkeypatch.setattr(capture, "ORDINARY", 0)
    graphs = FakeGraphs(monkeypatch.setattr)
    seen = answers(bench, whole_model_of(bench, away))
    expected = answers(on_host, WholeModel(on_host.model, world, is_partitioned=False))
    assert [one.response_ids for one in seen] == [one.response_ids for one in expected]
    assert graphs.graphs and not recwarn.list


def scored(bench):
    scorer = Scorer(bench.model, bench.vocabulary, position_index(bench.model))
    return scorer(bench.samples[0], RESPONSE).log_probs.tolist()


def test_scores(bench, on_host):
    bench.model.to(GPU)
    assert scored(bench) == scored(on_host)


def probed(bench, world: World) -> float:
    (sample, *_) = bench.samples
    settings = {
        "prompt_ids": lambda body: list(sample.prompt_ids),
        "answer": lambda body: ([11] * body["max_completion_tokens"], "length"),
        "logprobs": lambda body, ids: [-0.5] * len(ids),
    }
    requirements = replace(needs_of(bench), room=len(sample.prompt_ids) + 8)
    probe = Probe(bench.model, world, requirements, position_index(bench.model), tolerance=math.inf)
    with FakeServer(**settings) as server:
        apis = [ServerApi(server.base_url, timeout_s=LONG, connections=1)]
        return list(probe.judge(probe.ask(apis, [1], read_s=LONG)).values())


def test_the_probe(bench, on_host, away, world):
    bench.model.to(GPU)
    assert probed(bench, away) == probed(on_host, world)


def adapted(bench, kind: str) -> None:
    """Adapters that change something, and trained coordinate rows."""
    section = TunerSection(type=kind, lora_rank=2, lora_alpha=4.0, trainable_token_rows="coordinates")
    add_adapters(bench.model, section, (), bench.vocabulary.coordinate_ids, seed=0, source=Path())
    with torch.no_grad():
        for name, parameter in bench.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)


def exported(whole_model: WholeModel, source: Path, folder: Path) -> dict[str, torch.Tensor]:
    export(whole_model, source, Qwen2VLImageProcessorPil.from_pretrained(source), folder)
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("partitioned", [pytest.param(False, marks=pytest.mark.soak), True])
@pytest.mark.parametrize("kind", ["lora", pytest.param("dora", marks=pytest.mark.soak)])
def test_an_export(kind, partitioned, quickstart, bench, on_host, away, world, tmp_path):
    """Under ZeRO 3 after a rollout, which leaves the layout as it found it."""
    plain = load_bench(quickstart, num_samples=3)
    for one in (bench, plain):
        adapted(one, kind)
    if partitioned:
        whole_model = whole_model_of(bench, away)
        answers(bench, whole_model)
    else:
        whole_model = WholeModel(bench.model.to(GPU), away, is_partitioned=False)
    seen = exported(whole_model, quickstart.model, tmp_path / "seen")
    expected = exported(
        WholeModel(plain.model, world, is_partitioned=False), quickstart.model, tmp_path / "expected"
    )
    assert seen.keys() == expected.keys()
    assert all(torch.equal(seen[name], tensor) for name, tensor in expected.items())


def step(bench, device: str) -> tuple[float, float]:
    """Loss, and norm of the gradient, of a pack with two passes."""
    objective = bench.objective().to(device)
    loss, _ = objective(collate(bench.segments(), num_passes=2).to(device))
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in objective.parameters() if p.grad is not None])
    return loss.item(), norm.item()


def test_the_objective(bench, quickstart):
    assert step(bench, str(GPU)) == step(load_bench(quickstart, num_samples=3), "cpu")


# --- what a mixture looks like: taken out of the code, each is caught --------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Plant:
    """A line of the package as it would stand with a mistake."""

    owner: Any
    # module or class
    function: str
    right: str
    wrong: str

    def plant(self, monkeypatch) -> None:
        old = getattr(self.owner, self.function)
        source = textwrap.dedent(inspect.getsource(old))
        assert source.count(self.right) == 1, f"{self.right!r} no longer stands in {self.function}"
        names = dict(inspect.unwrap(old).__globals__)
        exec(source.replace(self.right, self.wrong), names)
        monkeypatch.setattr(self.owner, self.function, names[self.function])


def caught(act, plant: Plant, monkeypatch) -> None:
    plant.plant(monkeypatch)
    with pytest.raises(RuntimeError, match=r"cuda:0|of a tensor on") as error:
        act()
    assert any(isinstance(one, Mixture) for one in (error.value, error.value.__cause__))


def one_and_more(plants: list[Plant]) -> list:
    """The first in every run of the tests, the others in the soak tier."""
    return [plants[0], *(pytest.param(plant, marks=pytest.mark.soak) for plant in plants[1:])]


IN_HF = [
    Plant(owner=WholeModel, function="_gather", right="buffer.data = buffer.data.to(device)", wrong="pass"),
    Plant(owner=loop, function="image_features", right=".to(model.device, model.dtype)", wrong=""),
    Plant(
        owner=loop,
        function="image_features",
        right="image_grid_thw for sample in samples]).to(model.device)",
        wrong="image_grid_thw for sample in samples])",
    ),
    Plant(owner=passes, function="_positions", right=".to(answering_T.device)", wrong=""),
    Plant(owner=passes, function="_mask", right="arange(columns, device=visible_RQ.device)", wrong="arange(columns)"),
    Plant(
        owner=Chooser,
        function="__init__",
        right="width + 1, dtype=torch.long, device=device",
        wrong="width + 1, dtype=torch.long",
    ),
    Plant(
        owner=Chooser,
        function="__init__",
        right="forbidden_ids, dtype=torch.long, device=device",
        wrong="forbidden_ids, dtype=torch.long",
    ),
]
IN_SCORING = [
    Plant(owner=scoring, function="answer_logits", right="ids[None].to(device)", wrong="ids[None]"),
    Plant(owner=scoring, function="answer_logits", right="[:, None].to(device)", wrong="[:, None]"),
    Plant(owner=Vision, function="to", right=".pixel_values.to(device, non_blocking=True)", wrong=".pixel_values"),
    Plant(owner=Scorer, function="__call__", right=", device=logits_TV.device", wrong=""),
    Plant(owner=Scorer, function="__call__", right="drawn_R[:, None])[:, 0].cpu()", wrong="drawn_R[:, None])[:, 0]"),
]
IN_EXPORT = [
    Plant(owner=WholeModel, function="_gather", right="to(device,", wrong="to('cuda' if 'A' in name else 'cpu',"),
    Plant(owner=tuners, function="_merged", right="copied.merge()", wrong="copied.lora_A.to('cuda'); copied.merge()"),
]
IN_PROBE = [
    Plant(owner=Probe, function="_log_probs", right=".cpu()", wrong=""),
    Plant(owner=logprob_probe, function="answer_logits", right="[:, None].to(device)", wrong="[:, None]"),
]


@pytest.mark.parametrize("plant", one_and_more(IN_HF))
def test_a_mixture_in_hf(plant, bench, away, monkeypatch):
    whole_model = whole_model_of(bench, away)
    caught(lambda: answers(bench, whole_model), plant, monkeypatch)


@pytest.mark.parametrize("plant", one_and_more(IN_SCORING))
def test_a_mixture_in_scoring(plant, bench, monkeypatch):
    bench.model.to(GPU)
    caught(lambda: scored(bench), plant, monkeypatch)


@pytest.mark.parametrize("plant", one_and_more(IN_EXPORT))
def test_a_mixture_in_the_export(plant, quickstart, bench, away, tmp_path, monkeypatch):
    adapted(bench, "lora")
    whole_model = whole_model_of(bench, away)
    caught(lambda: exported(whole_model, quickstart.model, tmp_path / "hf"), plant, monkeypatch)


@pytest.mark.parametrize("plant", one_and_more(IN_PROBE))
def test_a_mixture_in_the_probe(plant, bench, away, monkeypatch):
    bench.model.to(GPU)
    caught(lambda: probed(bench, away), plant, monkeypatch)

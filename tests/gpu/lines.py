"""The lines of `tests/gpu/check.py`, one in a process: `python -m tests.gpu.lines NAME cuda|cpu FOLDER ...`.

Each prints what it has seen, or what is wrong, as the last line, in JSON. They need what the package needs, no pytest.
"""

import json
import os
import random
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from operator import eq
from pathlib import Path
from types import TracebackType

import torch

from tests.parts import ROOT, Quickstart, config_values, merged, write_config

SHIPPED = ROOT / "assets" / "quickstart" / "stage1"
STEPS = 4  # of each channel
SAMPLES = 16
ROUNDS = 300  # of random inputs of each op
LOSS, GRADIENT = {"fp32": 1e-5, "bf16": 2e-2}, {"fp32": 1e-3, "bf16": 1e-1}
"""Largest difference to the CPU in fp32, relative; of the gradient, its norm."""
SAME_ANSWERS = 0.8  # least share of greedy answers that are the CPU's, in fp32: near ties may turn
BETWEEN_STAGES = {"fp32": 1e-4, "bf16": 2e-2}
"""Largest relative difference of the first step's loss between the ZeRO stages."""


def parts(folder: Path) -> Quickstart:
    return Quickstart(model=SHIPPED, plain=SHIPPED, data=folder / "data")


def device(on: str, folder: Path) -> str:
    if on == "cpu":
        return f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    assert torch.cuda.is_available(), f"torch {torch.__version__} sees no GPU"
    assert torch.cuda.is_bf16_supported(), "no bf16 on this GPU"
    free, total = torch.cuda.mem_get_info()
    return (
        f"torch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.get_device_name()},"
        f" {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
    )


def data(on: str, folder: Path) -> str:
    from ds_stage2ab.tools.digit_scenes import Layout, generate

    layout = Layout(max_digits=3, min_height=34, max_side=112)
    generate(folder / "data", seed=0, train_scenes=64, validation_scenes=12, layout=layout)
    return "64 scenes"


def build(on: str, folder: Path) -> str:
    """The C++ operators, compiled by the compiler that is there, beside the ones of the checkout."""
    places = ["--build-lib", str(folder / "library"), "--build-temp", str(folder / "objects")]
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", *places], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert list(folder.glob("library/ds_stage2ab/_C*")), (done.stdout + done.stderr).strip().splitlines()[-1]
    return "compiled"


def ops(on: str, folder: Path) -> str:
    """The library that was just built against the reference, on damaged answers and random scores.

    And draws on the device, where the reference runs, against those of the CPU.
    """
    os.environ["DS_STAGE2AB_NO_EXT"] = "1"  # this process loads no other library
    from ds_stage2ab.carriers import Truth
    from ds_stage2ab.codec.text import CODECS, encode_answer
    from ds_stage2ab.matching.scan import scan_arguments
    from ds_stage2ab.ops import binding, reference
    from tests.unit.parts import load_bench

    (library,) = folder.glob("library/ds_stage2ab/_C*")
    torch.ops.load_library(library)
    compiled = torch.ops.ds_stage2ab
    assert not binding.self_test(compiled), binding.self_test(compiled)
    rng, vocabulary = random.Random(0), load_bench(parts(folder), num_samples=1).vocabulary
    codec, grammar = CODECS["array"], list(CODECS["array"].grammar.values())
    for _ in range(ROUNDS):
        scene = [Truth(desc="seven", box=(1, 2, 300, 400)), Truth(desc="two", box=(500, 600, 900, 999))]
        response = encode_answer(scene, vocabulary, codec).ids.tolist()
        for _ in range(rng.randrange(4)):
            response[rng.randrange(len(response))] = rng.randrange(len(vocabulary.token_bytes))
        arguments = {
            "scan_rollout": (*scan_arguments(response, vocabulary), *grammar),
            "scan_lines": (*scan_arguments(response, vocabulary), rng.choice([4, 5])),
            "sample_tokens": some_scores(rng, num_ids=200),
            "attend_slots": some_slots(rng),
        }
        for name, words in arguments.items():
            seen, expected = getattr(compiled, name)(*words), getattr(reference, name)(*words)
            # the one that adds up in fp32
            same = partial(torch.allclose, atol=1e-6) if name == "attend_slots" else torch.equal
            pairs = zip(as_tuple(seen), as_tuple(expected), strict=True)
            assert all(one.dtype == other.dtype and same(one, other) for one, other in pairs), name
    assert arguments.keys() == {*binding.NAMES}, f"not compared: {', '.join({*binding.NAMES} - arguments.keys())}"
    for _ in range(ROUNDS // 10):
        words = some_scores(rng, num_ids=20_000)
        there = [part.to(on) if isinstance(part, torch.Tensor) else part for part in words]
        assert torch.equal(reference.sample_tokens(*there).cpu(), compiled.sample_tokens(*words)), "draws"
    return f"{len(binding.NAMES)} operators as their reference, {ROUNDS} random inputs each; the draws of the CPU"


def some_scores(rng: random.Random, num_ids: int) -> tuple[torch.Tensor | float | int, ...]:
    """Arguments of `sample_tokens` for four rows."""
    limits = rng.choice([0.3, 1.0, 2.0]), rng.choice([0, 1, 50]), rng.choice([0.5, 0.9, 1.0])
    seeds, positions = torch.randint(0, 2**63 - 1, (4,)), torch.randint(0, 500, (4,))
    return 3 * torch.randn(4, num_ids), *limits, seeds, positions


def some_slots(rng: random.Random) -> tuple[torch.Tensor | float, ...]:
    """Arguments of `attend_slots` for four queries of up to 24 lines of 32, four heads that share two keys."""
    lengths = [rng.randint(1, 24) for _ in range(4)]
    first = torch.tensor([rng.randint(0, 32 - length) for length in lengths])
    queries, keys, values = torch.randn(4, 4, 16), torch.randn(32, 2, 16), torch.randn(32, 2, 16)
    return queries, keys, values, first, torch.tensor(lengths), 0.25


def as_tuple(result: torch.Tensor | tuple) -> tuple:
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def objective(on: str, folder: Path, precision: str) -> str:
    """Loss and gradient of a pack with two passes, beside the CPU's in fp32."""
    from ds_stage2ab.engine.build import DTYPES
    from ds_stage2ab.packs.collate import collate
    from tests.unit.parts import load_bench

    torch.backends.cudnn.allow_tf32 = False  # as it is for products
    bench = load_bench(parts(folder), num_samples=6)
    pack = collate(bench.segments(), num_passes=2)
    expected, expected_gradient = step_of(bench, pack, "cpu")
    for parameter in bench.model.parameters():
        parameter.data = parameter.data.to(DTYPES[precision])
    loss, gradient = step_of(bench, pack, on)
    off = abs(loss - expected) / abs(expected)
    turned = float((gradient - expected_gradient).norm() / expected_gradient.norm())
    assert off <= LOSS[precision] and turned <= GRADIENT[precision], f"loss off by {off:.1e}, gradient {turned:.1e}"
    return f"to the CPU in fp32: loss {off:.1e}, gradient {turned:.1e}"


def step_of(bench: object, pack: object, on: str) -> tuple[float, torch.Tensor]:
    """(loss, the gradient in fp32 on the CPU, one tensor after the other)."""
    bench.model.zero_grad(set_to_none=True)
    module = bench.objective().to(on)
    loss, _ = module(pack.to(on))
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten().float().cpu() for p in module.parameters() if p.grad is not None])


def train(on: str, folder: Path, precision: str, stage: str) -> str:
    """Four steps of A and four of B with rollouts by `hf`, and a checkpoint."""
    from ds_stage2ab.metrics.journal import read_history

    name = f"{precision}-{stage}"
    done = run_of(folder, name, "ds_stage2ab/train.py", precision, int(stage))
    assert done.returncode == 0, said(done)
    steps = read_history(folder / name / "metrics.jsonl").steps
    assert [step.metrics["train/applied"] for step in steps] == [1] * 2 * STEPS, "a step was not applied"
    losses = [step.metrics["loss/total"] for step in steps]
    assert all(map(torch.isfinite, torch.tensor(losses))), f"losses {losses}"
    assert (folder / name / "checkpoints" / "latest").is_file()
    told = []
    for channel in "AB":
        own = [step.metrics for step in steps if step.channel == channel]
        assert len(own) == STEPS, f"{len(own)} steps of Channel {channel}"
        fastest = min(metrics["time/step_s"] for metrics in own)
        told.append(f"{channel} {own[0]['loss/total']:.3f} to {own[-1]['loss/total']:.3f}, {fastest:.2f} s per step")
    return f"loss {'; '.join(told)}"


def stages(on: str, folder: Path) -> str:
    """ZeRO 1 to 3 begin with the same loss: that of the first step, of Channel A."""
    from ds_stage2ab.metrics.journal import read_history

    told = []
    for precision, most in BETWEEN_STAGES.items():
        files = [folder / f"{precision}-{stage}" / "metrics.jsonl" for stage in (1, 2, 3)]
        losses = [read_history(file).steps[0].metrics["loss/total"] for file in files]
        off = (max(losses) - min(losses)) / abs(losses[0])
        assert off <= most, f"{precision}: the first losses are {losses}"
        told.append(f"{precision} {off:.1e}")
    return f"first loss of ZeRO 1, 2, 3: largest difference {', '.join(told)}"


def memory(on: str, folder: Path) -> str:
    """The device's own refusal, inside a pack, becomes our message and its exit code."""
    done = run_of(folder, "memory", "tests/gpu/no_memory.py", "fp32", 2)
    wanted = "rank 0 is out of memory in step 1, in a pack of"
    assert done.returncode == 4 and wanted in done.stderr and "Traceback" not in done.stderr, said(done)
    return f"exit code 4, `{wanted} ...`"


def run_of(folder: Path, name: str, script: str, precision: str, stage: int) -> subprocess.CompletedProcess[str]:
    changes = {
        "training.max_steps": 2 * STEPS,
        "training.optimizer": "adamw",
        "training.learning_rate": 1e-4,
        "stage2_ab.schedule.b_ratio": 0.5,
        "model.precision": precision,
        "deepspeed.zero_stage": stage,
    }
    config = write_config(folder / f"{name}.yaml", merged(config_values(parts(folder), folder, name), changes))
    words = [sys.executable, script, "--config", str(config)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def said(done: subprocess.CompletedProcess[str]) -> str:
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    last = (errors or done.stderr.strip().splitlines() or ["nothing"])[-1]
    return f"exit code {done.returncode}, and said: {last}"


def decode(on: str, folder: Path, precision: str) -> str:
    """Greedy answers of `hf`, all rows at once, and how fast they come."""
    from ds_stage2ab.engine.build import DTYPES
    from tests.unit.parts import load_bench

    bench = load_bench(parts(folder), num_samples=SAMPLES)
    expected = answers(bench, SAMPLES // 2) if precision == "fp32" else None
    for parameter in bench.model.parameters():
        parameter.data = parameter.data.to(DTYPES[precision])
    bench.model.to(on)
    answers(bench, SAMPLES)  # what is only done once
    start = time.perf_counter()
    seen = answers(bench, SAMPLES)
    seconds, longest = time.perf_counter() - start, max(map(len, seen))
    tokens = sum(map(len, seen))
    told = f"{tokens / seconds:.0f} tokens/s in {SAMPLES} rows, {1e3 * seconds / longest:.1f} ms per position"
    if expected is None:
        return told
    same = sum(one == other for one, other in zip(seen, expected, strict=True))
    assert same >= SAME_ANSWERS * SAMPLES, f"only {same} of {SAMPLES} answers are the CPU's"
    return f"{told}; {same} of {SAMPLES} answers are the CPU's"


def capture(on: str, folder: Path, precision: str, drafts: str) -> str:
    """Greedy answers, plain or with drafts: passes by CUDA graphs, beside all of them launched kernel by kernel."""
    from ds_stage2ab.engine.build import DTYPES
    from ds_stage2ab.rollout.decoding.capture import RECORDERS
    from tests.unit.parts import load_bench

    # a shape is captured only when it has come a few times; the first round has what is only done once
    number, rounds = (SAMPLES, 1) if on == "cpu" else (4 * SAMPLES, 2)
    bench = load_bench(parts(folder), num_samples=number)
    for parameter in bench.model.parameters():
        parameter.data = parameter.data.to(DTYPES[precision])
    bench.model.to(on)
    graphs, told, found = [], [], []
    for recorders in ({}, {kind: counted(recorder, graphs) for kind, recorder in RECORDERS.items()}):
        backend = decoder(bench, SAMPLES // 2, codec=drafts == "drafts")
        backend.recorders = recorders
        for _ in range(rounds):
            graphs.clear()
            start = time.perf_counter()
            seen = decoded(bench, backend)
            seconds = time.perf_counter() - start
        told.append(f"{1e3 * seconds / backend.decoding.passes:.2f} ms per pass")
        found.append(seen)
    assert backend.recorders, "a capture did not work, as the warning above says"
    if on == "cpu":
        assert not graphs
        return f"nothing is captured on a CPU: {told[0]}"
    same, replays = sum(map(eq, *found)), sum(map(len, graphs))
    assert graphs and replays, "no pass was captured"
    assert precision != "fp32" or same >= SAME_ANSWERS * number, f"only {same} of {number} answers are the same"
    passes = f"{replays} of {backend.decoding.passes} passes by {len(graphs)} graphs"
    return f"{told[1]}, captures included, not captured {told[0]}; {passes}; {same} of {number} answers are the same"


def counted(recorder: Callable, graphs: list[list[None]]) -> Callable:
    """A recorder that notes each replay of each graph."""

    def started() -> Callable:
        record = recorder()

        def noted(work: Callable) -> tuple[Callable, torch.Tensor]:
            replay, result = record(work)
            own: list[None] = []
            graphs.append(own)
            return lambda: (own.append(None), replay())[1], result

        return noted

    return started


def answers(bench: object, rows: int) -> list[tuple[int, ...]]:
    return decoded(bench, decoder(bench, rows, codec=False))


def decoder(bench: object, rows: int, *, codec: bool) -> object:
    """The backend `hf`, with drafts or none."""
    from ds_stage2ab.codec.text import CODECS
    from ds_stage2ab.engine.build import position_index
    from ds_stage2ab.rollout.hf import HfBackend

    settings = {"decode_batch_size": rows, "start_id": "check", "seed": 0, "codec": CODECS["array"] if codec else None}
    return HfBackend(lambda: nullcontext(bench.model), bench.vocabulary, position_index(bench.model), **settings)


def decoded(bench: object, backend: object) -> list[tuple[int, ...]]:
    from tests.unit.parts import greedy_sampling

    with backend.current_weights(0):
        rollouts = backend.generate(bench.samples, greedy_sampling(max_new_tokens=96), finished_steps=0)
    return [rollout.response_ids for rollout in rollouts]


NAMED: dict[str, Callable[..., str]] = {
    line.__name__: line for line in (device, data, build, ops, objective, train, stages, memory, decode, capture)
}


def tell_failure(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """For `sys.excepthook`: whatever a library raises on a device that nobody has tried is told in one line."""
    traceback.print_exception(kind, error, trace)
    print(json.dumps({"passed": False, "seen": f"{kind.__name__}: {error}".splitlines()[0]}))


if __name__ == "__main__":
    sys.excepthook = tell_failure
    name, on, folder, *words = sys.argv[1:]
    print(json.dumps({"passed": True, "seen": NAMED[name](on, Path(folder), *words)}))

"""Run folders whose steps took what known costs say."""

import heapq
import json
import random
from collections.abc import Sequence
from pathlib import Path

from ds_stage2ab.carriers import Rollout
from ds_stage2ab.metrics.journal import StepRecord, to_line
from ds_stage2ab.rollout.record import RolloutLog
from ds_stage2ab.simulation.costs import Costs, Request, Setup
from ds_stage2ab.simulation.decoding import Tally, at_servers, decode
from ds_stage2ab.simulation.machine import Machine
from ds_stage2ab.simulation.step import a_step, b_step, proof_s

B_STEPS, SAMPLES = 5, 24


def asked(seed: int, number: int) -> list[Request]:
    dice = random.Random(seed)
    drawn = [(dice.randint(50, 150), dice.randint(5, 80)) for _ in range(number)]
    return [Request(prompt=p, answer=a, segment=p + a, a_segment=p + a) for p, a in drawn]


def seconds_of(requests: Sequence[Request], permits: int, costs: Costs) -> list[float]:
    """Of each, from its sending to its answer, at one server."""
    machine, ends = Machine(None), {}
    owners = at_servers(list(enumerate(requests)), [permits])
    machine.start(decode(owners, costs.server, lambda rank, place: ends.update({place: machine.now}), Tally()))
    machine.run()
    free, taken = [0.0] * permits, []
    for place in range(len(requests)):
        begun = heapq.heappop(free)
        taken.append(ends[place] - begun)
        heapq.heappush(free, ends[place] + costs.server.turnaround_s)
    return taken


def write_run(folder: Path, costs: Costs, setup: Setup, *, with_a: bool = True) -> list[Request]:
    """One rank and one server, A and B in turn; returns the requests."""
    folder.mkdir()
    training = {
        "effective_batch_size": SAMPLES,
        "per_device_train_batch_size": setup.per_device,
        "global_max_length": setup.pack_tokens,
        "packing": setup.packing,
    }
    section = {"rollout_backend": "vllm", "decode_batch_size": setup.decode_batch_size}
    config = {"training": training, "custom": {"extra": {"rollout_matching": section}}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "environment.json").write_text(json.dumps({"learners": setup.learners}))
    log, journal, everything = RolloutLog(folder / "rollouts", rank=0), [], []
    for number in range(B_STEPS):
        requests = asked(number, SAMPLES)
        everything += requests
        a_number, b_number = 2 * number, 2 * number + 1
        if with_a:
            journal.append(step_record(a_number, "A", requests, costs, setup))
        journal.append(step_record(b_number, "B", requests, costs, setup))
        taken = seconds_of(requests, setup.decode_batch_size, costs)
        pairs = enumerate(zip(requests, taken, strict=True))
        log(b_number, [rollout(b_number * SAMPLES + place, *pair) for place, pair in pairs])
    (folder / "metrics.jsonl").write_text("".join(map(to_line, journal)))
    return everything


def rollout(draw: int, request: Request, seconds: float) -> Rollout:
    return Rollout(
        sample_id=f"train.jsonl:{draw}",
        draw=draw,
        prompt_ids=(1,) * request.prompt,
        response_ids=(2,) * (request.answer - 1),
        finish="stop",
        weight_version="start/1",
        seed=0,
        source="vllm http://127.0.0.1:8000",
        seconds=seconds,
        attempt=1,
        probabilities=None,
    )


def step_record(step: int, channel: str, requests: Sequence[Request], costs: Costs, setup: Setup) -> StepRecord:
    """What the step would have reported."""
    learner, found = costs.learner, (a_step if channel == "A" else b_step)(requests, setup, costs)
    update = costs.learner.update_s
    metrics = {
        "train/samples": SAMPLES,
        "train/skipped_samples": 0,
        "train/tokens": sum(one.segment for one in requests),
        "train/packs": 0,
        "time/data_s": learner.sample_s * SAMPLES,
        "time/segments_s": 0.0,
        "time/optimizer_s": update,
        "time/step_s": found.whole,
    }
    metrics["time/forward_backward_s"] = metrics["train/tokens"] * (
        learner.a_token_s if channel == "A" else learner.token_s
    )
    if channel == "B":
        metrics |= {
            "time/segments_s": proof_s(setup, costs),
            "time/match_s": learner.match_s * SAMPLES,
            "time/servers_idle_s": found.whole - found.servers_busy,
            "rollout/sync_bytes": costs.transfer.num_bytes,
        }
    # waiting for rollouts is what is left
    metrics["time/rollout_s"] = found.whole - sum(value for name, value in metrics.items() if name in PHASES)
    return StepRecord(step=step + 1, channel=channel, applied=True, metrics=metrics, skipped=(), wall_time=float(step))


PHASES = tuple(f"time/{name}_s" for name in ("data", "segments", "match", "forward_backward", "optimizer"))


def as_decoded_alone(folder: Path) -> None:
    """Make the run one whose learner has decoded itself."""
    config, metrics = folder / "config.json", folder / "metrics.jsonl"
    config.write_text(config.read_text().replace('"vllm"', '"hf"'))
    decoding = '"rollout/passes": 9, "rollout/live_slots": 0.5, "rollout/tokens_per_pass": 1.5, "rollout/sync_bytes"'
    metrics.write_text(metrics.read_text().replace('"rollout/sync_bytes"', decoding))

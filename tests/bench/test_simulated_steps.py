"""What a simulation of a step says beside what steps take: real servers, and decoding in process."""

import statistics
from collections.abc import Sequence

import pytest

from ds_stage2ab.carriers import Decoding, Sample
from ds_stage2ab.data.records import read_records
from ds_stage2ab.simulation.costs import Request
from ds_stage2ab.simulation.decoding import Tally, at_servers, decode
from ds_stage2ab.simulation.fit import Decoded, decoded_alone, server_costs
from ds_stage2ab.simulation.machine import Machine
from ds_stage2ab.tools.digit_scenes import Layout, generate
from tests.bench.decoding_pictures import answered
from tests.bench.simulated_steps import LONGEST, SIZE, Met, Pace, folder_of, met, run, servers
from tests.parts import Quickstart
from tests.unit.parts import Bench, load_bench

CLOSE = 0.15
LOOSE = 0.5
"""On cores that servers and learner share, whatever else runs there counts too."""
TURNS, SCENES = 3, 48
PACE = Pace(pass_s=0.04, row_s=0.005)
"""Much more than a pass computes, so that cores that are shared decide little: as on devices of their own."""


@pytest.mark.bench
def test_servers_with_devices_of_their_own(shipped, tmp_path, capsys):
    """One server of 4 rows is recorded; two, three, one of 2 rows, and shorter answers are foreseen."""
    with servers(shipped, tmp_path, 3, 4, PACE) as four, servers(shipped, tmp_path / "two", 1, 2, PACE) as two:
        recorded = folder_of(run(shipped, tmp_path, "recorded", four[:1], {}))
        others = {
            "two-servers": (four[:2], {}),
            "three-servers": (four, {}),
            "two-rows": (two, {SIZE: 2}),
            "shorter-answers": (four[:1], {LONGEST: 40}),
        }
        runs = [run(shipped, tmp_path, name, urls, changes) for name, (urls, changes) in others.items()]
    seen = [one for config in runs for one in met(config, recorded, cores=None)]
    say(seen, capsys)
    assert all(abs(one.off) <= CLOSE for one in seen)


@pytest.mark.bench
def test_servers_that_share_cores_with_the_learner(shipped, tmp_path, capsys):
    """The same on two cores for all, where every pass is computed: in turns, so that a busy machine is so for both."""
    with servers(shipped, tmp_path, 2, 4, None) as urls:
        seen: dict[str, list[Met]] = {}
        for turn in range(TURNS):
            recorded = folder_of(run(shipped, tmp_path, f"recorded-{turn}", urls[:1], {}))
            for name, own, changes in (("two-servers", urls, {}), ("shorter-answers", urls[:1], {LONGEST: 40})):
                config = run(shipped, tmp_path, f"{name}-{turn}", own, changes)
                seen.setdefault(name, []).append(met(config, recorded, cores=2)[0])
    say([one for own in seen.values() for one in own], capsys)
    assert all(abs(statistics.median(one.off for one in own)) <= LOOSE for own in seen.values())


@pytest.mark.bench
def test_decoding_in_process(shipped, tmp_path, capsys):
    """4 and 16 slots are recorded; 2, 8 and 32 are foreseen. CPU seconds of one thread."""
    bench, samples = digits(shipped, tmp_path)
    taken, backends = {}, {}
    for size in (2, 4, 8, 16, 32):
        turns = [answered(bench, samples, size) for _ in range(TURNS)]
        backends[size], rollouts, _ = turns[0]
        taken[size] = statistics.median(seconds for _, _, seconds in turns)
    lengths = [len(one.response_ids) + (one.finish == "stop") for one in rollouts]
    recordings = [measured(backends[size].decoding, size, taken[size], len(samples)) for size in (4, 16)]
    costs = server_costs(recordings)
    seen = []
    for size in (2, 8, 32):
        requests = [Request(prompt=1, answer=one, segment=1, a_segment=1) for one in sorted(lengths, reverse=True)]
        machine, tally = Machine(None), Tally()
        machine.start(decode(at_servers(list(enumerate(requests)), [size]), costs, lambda rank, place: None, tally))
        seconds = machine.run()
        seen.append(Met(f"{size} slots, passes", tally.passes, backends[size].decoding.passes))
        seen.append(Met(f"{size} slots, CPU seconds", seconds, taken[size]))
    say(seen, capsys)
    assert all(abs(one.off) <= CLOSE for one in seen)


def digits(shipped: Quickstart, folder) -> tuple[Bench, list[Sample]]:
    """The shipped model, and scenes that it has not seen."""
    layout = Layout(max_digits=5, min_height=34, max_side=112)
    generate(folder / "data", seed=7, train_scenes=1, validation_scenes=SCENES, layout=layout)
    parts = Quickstart(model=shipped.model, plain=shipped.plain, data=folder / "data")
    bench = load_bench(parts, num_samples=0)
    records = read_records(parts.data / "validation.jsonl", image_root=None, box_format="bins")
    return bench, [bench.encoder.encode(record, place) for place, record in enumerate(records)]


def measured(done: Decoding, size: int, seconds: float, share: float) -> Decoded:
    """What a B step of a run would have reported of it."""
    metrics = {
        "rollout/passes": done.passes,
        "rollout/live_slots": done.live / done.slots,
        "rollout/tokens_per_pass": done.tokens / done.live,
        "time/rollout_s": seconds,
    }
    return decoded_alone(metrics, size, share)


def say(seen: Sequence[Met], capsys) -> None:
    with capsys.disabled():
        print("", *seen, sep="\n")

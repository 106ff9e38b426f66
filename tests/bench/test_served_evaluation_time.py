"""An evaluation on two real servers beside its answers alone: the learner's part is hidden, and no permit is idle.

The servers' passes sleep, as on devices of their own. Answers alone: one batch of all held-out samples, that this
process asks for and does nothing else.
"""

import time
from pathlib import Path

import pytest

from ds_stage2ab.codec.text import get_codec
from ds_stage2ab.data.records import read_records
from ds_stage2ab.evaluation.evaluator import Evaluator
from tests.bench.simulated_steps import Pace, servers
from tests.contract.backends import by_server, drawn, limited_bench, one_rank
from tests.unit.parts import greedy_sampling

SCENES, SEQUENCES = 192, 24
RATIO, SPARE_S = 1.10, 0.2
PACE = Pace(pass_s=0.04, row_s=0.001)
SAMPLING = greedy_sampling(max_new_tokens=96, with_probabilities=True)


@pytest.mark.bench
def test_an_evaluation_lasts_hardly_longer_than_its_answers(shipped, tmp_path, capsys):
    bench = limited_bench(shipped, num_samples=SCENES)
    records = read_records(shipped.data / "train.jsonl", image_root=None, box_format="bins")[:SCENES]
    with servers(shipped, tmp_path, 2, SEQUENCES, PACE) as (first, second), one_rank() as world:
        served = by_server(bench, first, world, start_id="evaluated", more=(second,), decode_batch_size=SEQUENCES)
        served.verify_weights(0)
        begun = time.perf_counter()
        longest_first = sorted(bench.samples, key=lambda sample: -len(sample.objects))
        rollouts = drawn(served, longest_first, SAMPLING, 0)
        alone_s = time.perf_counter() - begun
        begun = time.perf_counter()
        for sample, rollout in zip(longest_first, rollouts, strict=True):
            served.score(sample, rollout.response_ids)
        scored_s = time.perf_counter() - begun
        evaluator = Evaluator(
            records, bench.encoder.encode, served, SAMPLING,
            codec=get_codec("array"), vocabulary=bench.vocabulary, world=world, pictures=Path(), num_pictures=0,
            warn=print,
        )  # fmt: skip
        taken_s = evaluator.run(0).figures["eval/seconds"]
    with capsys.disabled():
        print(f"\nevaluation {taken_s:.2f} s; its answers alone {alone_s:.2f}, their scores alone {scored_s:.2f}")
    assert taken_s <= RATIO * max(alone_s, scored_s) + SPARE_S

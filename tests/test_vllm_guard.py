"""Inside a real vLLM server: answers end where `generate` ends them, no token that stands for pixels is drawn, and what
is drawn is what the learner would draw."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from ds_stage2ab import ops
from ds_stage2ab.engine.build import position_index
from ds_stage2ab.errors import EXIT_OK
from ds_stage2ab.metrics.journal import read_history
from ds_stage2ab.rollout.base import request_seed
from ds_stage2ab.rollout.scoring import answer_logits
from tests.contract.backends import SEED, by_model, by_server, disturbed, drawn, limited_bench, one_rank
from tests.parts import ROOT
from tests.served_runs import run
from tests.unit.parts import NO_GUARD, greedy_sampling
from tests.vllm_process import MATCHING, PYTHON

FREE = greedy_sampling(max_new_tokens=96)
ANSWER_S = 60


@pytest.fixture(scope="module")
def bench(shipped):
    return limited_bench(shipped, num_samples=8)


@pytest.fixture(scope="module")
def backends(bench, server):
    """(by the server, by the model itself), of the same weights."""
    with one_rank() as world:
        yield by_server(bench, server.base_url, world, start_id="guard"), by_model(bench, world, start_id="guard")


def guarded(**limits):
    return replace(FREE, repeat_terminate=replace(NO_GUARD, **limits))


def written(rollouts):
    return [(rollout.response_ids, rollout.finish) for rollout in rollouts]


def asked(served, sample, sampling, **changes):
    """The server's own reply to the request that a rollout of this sample makes."""
    body = served.conversation.request(sample, sampling, request_seed(SEED, sample.draw, sample.id))
    (member,) = served.servers.fleet.serving
    return served.servers.api(member.url).chat({**body, **changes}, read_s=ANSWER_S)


def tokens_of(reply):
    return tuple(reply["choices"][0]["token_ids"])


# --- the guard --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_hand():
    """What both model runners do; the newer runs on GPUs alone, and is driven by hand: rows that come, go and move."""
    command = [str(PYTHON), "-m", "tests.vllm_guard_cases"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_both_model_runners_end_the_rows_that_break_a_rule(by_hand):
    expected = {
        "old_batches": [[0], [0, 2], [0], [1], [], [], [2]],
        "old_ids_on_their_way": [[], [0], [0]],
        "new_batches": [[], [0], [0, 1], [], [], [], [0]],
        "drawn_and_over": [[0]],
        "loaded": ["Guard"],
    }
    assert {name: by_hand[name] for name in expected} == expected


def test_both_model_runners_draw_as_the_learner_does(by_hand):
    """Rows that ask for it, whatever stands beside them; the others are left to the server."""
    scores = torch.arange(12.0)[None] / 4

    def draws(seed, limits, first):
        one = torch.tensor([seed])
        return [ops.sample_tokens(scores, *limits, one, torch.tensor([first + n])).item() for n in range(4)]

    one, other = draws(11, (1.0, 0, 1.0), 0), draws(2**63 - 1, (0.5, 6, 0.9), 3)
    assert [*map(list, zip(*by_hand["old_draws"], strict=True))] == [one, other, [one[0]] * 4, *[[-1] * 4] * 4]
    assert [*map(list, zip(*by_hand["new_draws"], strict=True))] == [[-1] * 4, one, other, [one[0]] * 4]
    # 11 and 9 were said, so that of the scores 11, 10, 9 ... and -9, -10, -11 ... the 10 is the largest left
    assert by_hand["old_draws_under_a_penalty"] == [[10], [10]]


@pytest.mark.parametrize("limits", [{"max_objects": 1}, {"ngram_size": 3, "max_ngram_repeats": 2}])
def test_an_answer_ends_inside_the_server_where_generate_ends_it(bench, backends, limits):
    assert_ended_inside(bench, backends, guarded(**limits), step=0)


def test_a_token_in_a_row_ends_answers_of_weights_that_say_the_same_over_and_over(bench, backends):
    with disturbed(bench.model.model.language_model):
        assert_ended_inside(bench, backends, guarded(max_token_run=3), step=1)


def assert_ended_inside(bench, backends, sampling, *, step):
    """The answers are those of `generate`, and the server decoded nothing behind the token that broke a rule."""
    served, alone = backends
    ended, whole = drawn(served, bench.samples, sampling, step), drawn(alone, bench.samples, FREE, step)
    assert written(ended) == written(drawn(alone, bench.samples, sampling, step))
    spared = 0
    for sample, rollout, free in zip(bench.samples, ended, whole, strict=True):
        decoded = asked(served, sample, sampling)["usage"]["completion_tokens"]
        assert decoded == len(rollout.response_ids) + (rollout.finish != "length")
        spared += max(0, len(free.response_ids) - decoded)
    assert spared > len(bench.samples)


def test_requests_with_and_without_rules_share_a_batch(bench, backends):
    """Of 24 requests, four at a time, each third has no rule, and the others different ones."""
    served, alone = backends
    kinds = [FREE, guarded(max_objects=1), guarded(ngram_size=3, max_ngram_repeats=2)]
    alike = [written(drawn(alone, bench.samples, sampling, 0)) for sampling in kinds]
    stop = served.vocabulary.stop_id
    with served.current_weights(0), ThreadPoolExecutor(4) as pool:
        jobs = [(sample, place, kind) for place, sample in enumerate(bench.samples) for kind in range(len(kinds))]
        replies = pool.map(lambda job: asked(served, job[0], kinds[job[2]]), jobs, timeout=ANSWER_S * len(jobs))
        for (_, place, kind), reply in zip(jobs, replies, strict=True):
            response, finish = alike[kind][place]
            assert tokens_of(reply) == (response if finish == "length" else (*response, stop))


# --- tokens that stand for pixels -------------------------------------------------------------------------------------


def test_a_token_that_stands_for_pixels_is_never_drawn(bench, backends):
    """The head wants the image placeholder more than anything: its row points where all hidden states do.

    As an input that row is never used, so the answers are those of the model as it was.
    """
    served, alone = backends
    sample, image_id = bench.samples[0], bench.vocabulary.image_id
    before = drawn(alone, bench.samples, FREE, 2)
    table = bench.model.get_input_embeddings().weight.data
    own = table[image_id].clone()
    table[image_id] = greediest_row(bench, sample, before[0].response_ids)
    try:
        rollouts = drawn(served, bench.samples, FREE, 3)
        assert tokens_of(asked(served, sample, FREE, bad_words=[], max_completion_tokens=1)) == (image_id,)
        warm = drawn(served, bench.samples, replace(FREE, temperature=1.5), 3)
    finally:
        table[image_id] = own
    assert written(rollouts) == written(before)
    assert all(image_id not in rollout.response_ids for rollout in warm)


def greediest_row(bench, sample, response):
    """A row of the head whose logit is far above all others wherever this answer goes on."""
    seen = []
    handle = bench.model.lm_head.register_forward_pre_hook(lambda _, given: seen.append(given[0][0]))
    logits = answer_logits(bench.model, sample, response, position_index(bench.model))
    handle.remove()
    hidden_TD = torch.cat(seen)
    row = torch.linalg.lstsq(hidden_TD, torch.full((len(hidden_TD), 1), 2 * float(logits.max()))).solution[:, 0]
    assert bool((hidden_TD @ row > logits.max(dim=1).values).all())
    return row


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_an_evaluation_with_a_server_is_ranked_like_one_without(shipped, server, tmp_path):
    """11 samples on two ranks under ZeRO 3: one scores a dummy while the other scores its sixth answer."""
    changes = {
        "training.max_steps": 1,
        "training.learning_rate": 0.001,
        "stage2_ab.schedule.b_ratio": 0,
        "data.validation": str(shipped.data / "validation.jsonl"),
        "evaluation.max_samples": 11,
    }
    folders = [tmp_path / "served", tmp_path / "alone"]
    for folder in folders:
        folder.mkdir()
    served = run(shipped, folders[0], server.base_url, {**changes, "deepspeed.zero_stage": 3})
    alone = run(shipped, folders[1], server.base_url, {**changes, f"{MATCHING}.rollout_backend": "hf"}, ranks=1)
    served, alone = (figures_of(ran) for ran in (served, alone))
    assert [step for step, _ in served] == [0, 1]
    for (_, seen), (_, wanted) in zip(served, alone, strict=True):
        assert seen == pytest.approx(wanted, rel=1e-5)
        assert seen["eval/samples"] == 11
        assert 0 < seen["eval/ap_by_probability"] < 1 and 0 < seen["eval/coord_mass"] <= 1


def figures_of(ran):
    """(finished steps, what was found but for the time it took) of every evaluation of a run."""
    assert ran.done.returncode == EXIT_OK, ran.done.stdout[-2000:] + ran.done.stderr[-3000:]
    evaluations = read_history(ran.folder / "metrics.jsonl").evaluations
    plain = [{name: one.metrics[name] for name in one.metrics if "second" not in name} for one in evaluations]
    return [(one.step, found) for one, found in zip(evaluations, plain, strict=True)]

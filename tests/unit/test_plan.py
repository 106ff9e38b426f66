"""One test per invariant of the plan, and hand-computed numbers."""

import itertools
import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_stage2ab.errors import ConfigError
from ds_stage2ab.plan import (
    Cadence,
    LearningRate,
    make_plan,
    records_fill_a_step,
    rollout_timeout_s,
    steps_in_epochs,
    transfer_mode,
)
from tests.unit.plans import MINIMAL, config, with_servers


def test_the_numbers_of_a_plan():
    # R 32 = p 4 x W 2 x G 4; 100 records give 3 whole steps of 32, 96 records; 2.5 epochs of 3 steps: floor(7.5) = 7
    plan = make_plan(config(per_device_train_batch_size=4, num_epochs=2.5), learners=2, num_records=100)
    assert (plan.effective_batch_size, plan.per_device, plan.learners, plan.accumulation_steps) == (32, 4, 2, 4)
    assert plan.samples_per_rank == 16
    assert plan.batch_sentence == "32 samples per step = 4 per rank x 2 ranks x 4 micro-steps"
    assert (plan.steps_per_epoch, plan.num_records_used, plan.total_steps) == (3, 96, 7)
    assert plan.epochs == pytest.approx(7 / 3)


def test_epochs_that_wrap_leave_no_record_out():
    # 100 records in steps of 32: an epoch is 3.125 steps, 2.5 epochs are 250 records, floor(7.8125) = 7 steps of them
    plan = make_plan(replace(config(num_epochs=2.5), data=replace(MINIMAL.data, epoch_end="wrap")), 2, 100)
    assert (plan.steps_per_epoch, plan.num_records_used, plan.total_steps) == (3, 100, 7)
    assert plan.epochs == pytest.approx(7 * 32 / 100)
    exact = make_plan(config("data", epoch_end="wrap"), 2, 96)
    assert (exact.num_records_used, exact.total_steps) == (96, 3)


def test_max_steps_decides_when_it_is_given():
    plan = make_plan(config(max_steps=5, num_epochs=9.0), learners=1, num_records=64)
    assert plan.total_steps == 5
    assert plan.epochs == 2.5


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.integers(0, 5000))
def test_samples_and_records_are_preserved(per_device, learners, steps, num_records):
    effective = per_device * learners * steps
    asked = config(effective_batch_size=effective, per_device_train_batch_size=per_device)
    if num_records < effective:
        with pytest.raises(ConfigError):
            make_plan(asked, learners, num_records)
        return
    plan = make_plan(asked, learners, num_records)
    assert plan.per_device * plan.learners * plan.accumulation_steps == effective
    assert plan.samples_per_rank * plan.learners == effective
    assert plan.steps_per_epoch * effective == plan.num_records_used
    assert plan.num_records_used <= num_records < plan.num_records_used + effective
    assert plan.total_steps >= 1


def test_a_batch_that_does_not_divide_has_no_plan():
    with pytest.raises(ConfigError, match="32 is not a multiple of 3") as raised:
        make_plan(MINIMAL, learners=3, num_records=100)
    assert "30 or 33" in raised.value.fix


def test_an_accumulation_that_contradicts_has_no_plan():
    with pytest.raises(ConfigError, match="which is 16"):
        make_plan(config(gradient_accumulation_steps=8), learners=2, num_records=100)
    assert make_plan(config(gradient_accumulation_steps=16), 2, 100).accumulation_steps == 16


def test_too_few_records_for_one_step_have_no_plan():
    assert records_fill_a_step(32, 32) == 1
    with pytest.raises(ConfigError) as raised:
        records_fill_a_step(31, 32)
    assert raised.value.why == "one step takes 32 samples, and data.train holds 31 records"
    assert raised.value.where == "training.effective_batch_size"


def test_epochs_are_taken_as_the_decimal_that_was_written():
    # 0.29 * 100 is 28.999999999999996 in binary floating point
    assert steps_in_epochs(0.29, 100) == 29
    assert steps_in_epochs(1.0, 7) == 7


def test_a_part_of_an_epoch_without_a_whole_step_has_no_plan():
    with pytest.raises(ConfigError, match=r"0\.1 of an epoch of 9 steps holds no whole step"):
        steps_in_epochs(0.1, 9)


def rate(**changes) -> LearningRate:
    numbers = {"peak": 1.0, "schedule": "linear", "warmup_steps": 0, "final_ratio": 0.0, "total_steps": 10}
    return LearningRate(**{**numbers, **changes})


def test_warm_up_rises_in_equal_parts_to_the_peak():
    # 4 steps: 1/4, 2/4, 3/4, 4/4, and the first step after it is still at the peak
    schedule = rate(peak=2.0, warmup_steps=4)
    assert [schedule.at(step) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]


def test_linear_falls_to_the_ratio_at_the_end():
    # warm-up 2, 8 steps left: at step 6 half is done, 0.2 + 0.8 / 2 = 0.6; at step 10 all is: 0.2
    schedule = rate(warmup_steps=2, final_ratio=0.2)
    assert schedule.at(6) == pytest.approx(0.6)
    assert schedule.at(10) == pytest.approx(0.2)


def test_cosine_falls_along_half_a_wave():
    # at a quarter (1 + cos 45 deg) / 2 = 0.8535534, at half 0.5, at the end 0; with ratio 0.1: 0.1 + 0.9 * 0.5
    schedule = rate(schedule="cosine", total_steps=8)
    assert schedule.at(0) == 1.0
    assert schedule.at(2) == pytest.approx(0.8535533906)
    assert schedule.at(4) == pytest.approx(0.5)
    assert schedule.at(8) == pytest.approx(0.0)
    assert rate(schedule="cosine", total_steps=8, final_ratio=0.1).at(4) == pytest.approx(0.55)


def test_constant_stays():
    schedule = rate(schedule="constant", warmup_steps=2)
    assert [schedule.at(step) for step in (0, 1, 2, 9)] == [0.5, 1.0, 1.0, 1.0]


@given(st.sampled_from(["constant", "linear", "cosine"]), st.integers(0, 30), st.floats(0, 1), st.integers(1, 30))
def test_the_rate_is_positive_until_the_end_and_never_above_the_peak(kind, warmup, ratio, total):
    schedule = rate(schedule=kind, warmup_steps=warmup, final_ratio=ratio, total_steps=total)
    rates = [schedule.at(step) for step in range(total)]
    assert all(0 < value <= 1 + 1e-12 for value in rates)
    after = rates[warmup:]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(after))


def test_the_plan_takes_its_rate_from_the_config():
    asked = config(learning_rate=0.1, warmup_steps=2, lr_scheduler="cosine", min_learning_rate_ratio=0.5, max_steps=10)
    plan = make_plan(asked, 1, 64)
    assert [plan.learning_rate(0), plan.learning_rate(1)] == [0.05, 0.1]
    # step 6 is half of the 8 steps after the warm-up: 0.1 * (0.5 + 0.5 * (1 + cos(pi / 2)) / 2) = 0.075
    assert plan.learning_rate(6) == pytest.approx(0.1 * (0.5 + 0.5 * (1 + math.cos(math.pi / 2)) / 2))


def test_the_channel_follows_the_ratio():
    plan = make_plan(MINIMAL, 1, 64)
    assert {plan.channel_for_step(step) for step in range(10)} == {"A"}
    assert [replace(plan, b_ratio=Fraction(1, 2)).channel_for_step(step) for step in range(4)] == list("ABAB")


def due(cadence: Cadence) -> list[int]:
    return [step for step in range(cadence.total_steps) if cadence.due(step)]


def test_a_cadence_is_due_on_its_interval_and_at_the_end():
    # after 4, 8 and, because the run ends, 10 finished steps
    assert due(Cadence(enabled=True, at_start=False, every_steps=4, total_steps=10)) == [3, 7, 9]
    assert due(Cadence(enabled=True, at_start=False, every_steps=5, total_steps=10)) == [4, 9]
    assert due(Cadence(enabled=True, at_start=False, every_steps=None, total_steps=10)) == [9]
    assert due(Cadence(enabled=False, at_start=False, every_steps=4, total_steps=10)) == []


def test_the_last_step_is_always_saved_and_evaluated():
    with_data = replace(config(max_steps=7), data=replace(MINIMAL.data, validation=Path("v.jsonl")))
    plan = make_plan(with_data, 1, 64)
    assert (due(plan.save), due(plan.evaluate), plan.evaluate.at_start) == ([6], [6], True)


def test_without_validation_data_nothing_is_evaluated():
    plan = make_plan(config(max_steps=7), 1, 64)
    assert (due(plan.evaluate), plan.evaluate.at_start) == ([], False)


def test_the_deepspeed_dictionary():
    plan = make_plan(config("model", precision="fp32"), learners=2, num_records=64)
    assert plan.deepspeed_config == {
        "train_batch_size": 32,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 16,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 1},
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": False},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "fp16": {"enabled": False},
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }
    assert json.loads(json.dumps(plan.deepspeed_config)) == plan.deepspeed_config


def test_an_offloaded_optimizer_is_deepspeeds_to_place():
    offloaded = config("deepspeed", zero_stage=3, offload_optimizer="cpu")
    zero = make_plan(offloaded, learners=2, num_records=64).deepspeed_config["zero_optimization"]
    assert zero == {"stage": 3, "offload_optimizer": {"device": "cpu"}}


def test_clipping_is_written_when_it_is_off():
    assert make_plan(config("deepspeed", gradient_clipping=0.0), 1, 64).deepspeed_config["gradient_clipping"] == 0.0


@pytest.mark.parametrize(
    ("precision", "stage", "run"), [("bf16", 0, 1), ("bf16", 1, 1), ("bf16", 2, 2), ("fp32", 0, 0), ("fp32", 2, 2)]
)
def test_bf16_without_zero_runs_as_stage_1(precision, stage, run):
    asked = replace(config("model", precision=precision), deepspeed=replace(MINIMAL.deepspeed, zero_stage=stage))
    plan = make_plan(asked, 1, 64)
    assert plan.zero_stage == run
    assert plan.deepspeed_config["zero_optimization"]["stage"] == run


def test_without_the_records_the_steps_are_those_of_max_steps():
    plan = make_plan(config(max_steps=5), learners=2, num_records=None)
    assert (plan.total_steps, plan.b_steps, due(plan.save)) == (5, 0, [4])
    assert (plan.steps_per_epoch, plan.num_records_used, plan.epochs) == (None, None, None)


def test_without_the_records_epochs_give_no_steps_and_all_else_is_known():
    known, plan = make_plan(MINIMAL, 2, 64), make_plan(MINIMAL, learners=2, num_records=None)
    assert (plan.total_steps, plan.b_steps, plan.epochs) == (None, None, None)
    assert not plan.save.due(0)
    assert (plan.batch_sentence, plan.deepspeed_config) == (known.batch_sentence, known.deepspeed_config)


def test_the_servers_give_the_request_window():
    # 4 at once on 2 + 1 replicas is 12 places; on 8 ranks floor(12 / 8) = 1 each at least
    plan = make_plan(with_servers(), learners=8, num_records=64, server_replicas=[2, 1])
    assert (plan.server_replicas, plan.request_window) == ((2, 1), 1)


def test_servers_that_cannot_feed_every_rank_have_no_plan():
    with pytest.raises(ConfigError, match="fewer than the 16 learner ranks"):
        make_plan(with_servers(), learners=16, num_records=64, server_replicas=[2, 1])


def test_what_is_not_asked_yet_and_what_is_not_used_is_none():
    unknown = make_plan(with_servers(), 1, 64)
    unused = make_plan(MINIMAL, 1, 64, server_replicas=[2, 1])
    assert [(plan.server_replicas, plan.request_window) for plan in (unknown, unused)] == [(None, None)] * 2


def test_a_rollout_is_waited_for_at_two_tokens_per_second_and_a_minute_at_least():
    # 3072 / 2 = 1536 s; 64 / 2 = 32 s is below the minute
    assert rollout_timeout_s(None, 3072) == 1536
    assert rollout_timeout_s(None, 64) == 60
    assert rollout_timeout_s(5.5, 3072) == 5.5
    assert make_plan(with_servers(max_new_tokens=3072), 1, 64).infer_timeout_s == 1536


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.05)])
def test_the_probe_is_as_exact_as_the_precision(precision, tolerance):
    assert make_plan(config("model", precision=precision), 1, 64).probe_tolerance == tolerance
    vllm = replace(MINIMAL.rollout_matching.vllm, probe=replace(MINIMAL.rollout_matching.vllm.probe, tolerance=0.2))
    assert make_plan(with_servers(vllm=vllm), 1, 64).probe_tolerance == 0.2


def test_a_transfer_sends_every_weight():
    assert [transfer_mode("auto"), transfer_mode("full")] == ["full", "full"]
    assert [make_plan(MINIMAL, learners, 64).sync_mode for learners in (1, 2)] == ["full", "full"]

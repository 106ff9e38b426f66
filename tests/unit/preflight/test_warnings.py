"""One test per warning: when it is said, and when not."""

from dataclasses import replace
from fractions import Fraction

import pytest

from ds_stage2ab.config.sections import ServerSection
from ds_stage2ab.plan import make_plan
from ds_stage2ab.preflight.warnings import run_warnings
from tests.unit.plans import MINIMAL, config, with_servers


def warnings_of(asked, learners=1, num_records=64):
    return run_warnings(asked, make_plan(asked, learners, num_records))


@pytest.mark.parametrize(
    ("precision", "stage", "warned"),
    [("bf16", 0, True), ("bf16", 1, False), ("bf16", 2, False), ("fp32", 0, False), ("fp32", 2, False)],
)
def test_bf16_without_zero_says_that_it_runs_as_stage_1(precision, stage, warned):
    asked = replace(config("model", precision=precision), deepspeed=replace(MINIMAL.deepspeed, zero_stage=stage))
    assert any("run as stage 1" in warning for warning in warnings_of(asked)) == warned


def test_a_warm_up_as_long_as_the_run_is_warned_of():
    assert warnings_of(config(max_steps=5, warmup_steps=4)) == ()
    (warning,) = warnings_of(config(max_steps=5, warmup_steps=5))
    assert "warmup_steps is 5 and the run has 5 steps" in warning


def test_a_ratio_too_small_for_the_run_is_warned_of():
    # floor(19 * 0.05) = 0, floor(20 * 0.05) = 1
    schedule = replace(MINIMAL.stage2_ab, schedule=replace(MINIMAL.stage2_ab.schedule, b_ratio=Fraction(1, 20)))
    (warning,) = warnings_of(replace(config(max_steps=19), stage2_ab=schedule))
    assert warning == "stage2_ab.schedule.b_ratio is 0.05 and the run has 19 steps: none of them trains Channel B"
    assert warnings_of(replace(config(max_steps=20), stage2_ab=schedule)) == ()


def test_servers_that_others_can_reach_are_warned_of():
    """Another backend does not use them."""
    urls = ("http://127.0.0.1:8000", "http://10.0.0.7:8000", "http://node7:8000")
    servers = tuple(ServerSection(base_url=url, group_port=None, tensor_parallel_size=1) for url in urls)
    section = MINIMAL.rollout_matching.vllm
    vllm = replace(section, server=replace(section.server, servers=servers))
    (warning,) = warnings_of(with_servers(vllm=vllm))
    assert "reaches http://10.0.0.7:8000, http://node7:8000 can pause it and replace its weights" in warning
    assert "--api-key" in warning and "127.0.0.1" not in warning
    near = replace(section, server=replace(section.server, servers=servers[:1]))
    assert warnings_of(with_servers(vllm=near)) == ()
    assert warnings_of(with_servers(vllm=vllm, rollout_backend="hf")) == ()


def test_ranks_that_give_up_before_a_server_that_hangs_does_are_warned_of():
    """900 s for one answer, 1,800 for one that goes to a second server too; ranks wait 1,800 s for each other."""
    assert MINIMAL.deepspeed.collective_timeout_s == 1800
    urls = [f"http://127.0.0.1:{n}" for n in range(2)]
    two = tuple(ServerSection(base_url=url, group_port=None, tensor_parallel_size=1) for url in urls)
    one = two[:1]
    section = MINIMAL.rollout_matching.vllm

    def warnings(servers, max_new_tokens, learners=2, **changes):
        vllm = replace(section, server=replace(section.server, servers=servers))
        return warnings_of(with_servers(vllm=vllm, max_new_tokens=max_new_tokens, **changes), learners)

    assert warnings(one, 3598) == warnings(two, 1798) == ()
    (warning,) = warnings(two, 1800)
    assert warning.startswith("a rank waits up to 1800 s for a rollout when a server hangs, and the others 1800 s")
    assert "vllm.server.infer_timeout_s lower, or deepspeed.collective_timeout_s higher" in warning
    assert len(warnings(one, 3600)) == 1
    assert warnings(two, 1800, learners=1) == warnings(two, 1800, rollout_backend="hf") == ()

"""The numbers in the line that validate prints, by hand."""

from pathlib import Path

import pytest

from ds_stage2ab.config.derived import derive
from ds_stage2ab.config.load import load_config
from ds_stage2ab.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
MIXED = load_config(ROOT / "configs/stage2_ab/prod/ab_mixed.yaml").resolved
MINIMAL = load_config(ROOT / "tests/examples/valid/minimal.yaml").resolved


def test_six_servers_beside_two_learners():
    # 128 samples / 2 ranks = 64; 4 places x 6 replicas / 2 ranks = 12; 64 = 4 x 11 + 2 x 10
    derived = derive(MIXED, 2, 6)
    assert derived.sentence == (
        "128 samples per step = 1 per rank x 2 ranks x 64 micro-steps; 64 samples per rank and step; b_ratio 0.5; "
        "6 server replicas, request window 12 per rank, "
        "whose 64 rollouts go about 11, 11, 11, 11, 10, 10 to the servers in order"
    )
    assert derived.numbers["servers"] == {
        "replicas": [1] * 6,
        "request_window": 12,
        "per_server": [11, 11, 11, 11, 10, 10],
    }


def test_more_devices_make_more_replicas_of_each_server():
    # 12 devices / 6 servers = 2 replicas each; 4 x 12 / 2 = 24
    share = derive(MIXED, 2, 12).servers
    assert (share.replicas, share.request_window) == ([2] * 6, 24)


def test_learners_that_generate_themselves_name_the_rows_at_a_time():
    section = {"rollout_backend": "hf", "decode_batch_size": 4, "best_of": 1}
    mixed = {**MIXED, "custom": {"extra": {"rollout_matching": section}}}
    assert derive(mixed, 2, None).sentence.endswith("; b_ratio 0.5; 64 rollouts per rank, 4 at a time")
    section = {"rollout_backend": "replay", "decode_batch_size": 4, "best_of": 1}
    replayed = {**MIXED, "custom": {"extra": {"rollout_matching": section}}}
    assert derive(replayed, 2, None).sentence.endswith("; b_ratio 0.5; 64 rollouts per rank, replayed")
    assert derive(MINIMAL, None, None).sentence.endswith("b_ratio 0")


def test_the_best_of_several_takes_as_many_times_the_rollouts():
    # 64 samples x 3 = 192 rollouts of 6 servers: 32 each
    matching = {**MIXED["custom"]["extra"]["rollout_matching"], "best_of": 3}
    derived = derive({**MIXED, "custom": {"extra": {"rollout_matching": matching}}}, 2, 6)
    assert derived.sentence.endswith("whose 192 rollouts go about 32, 32, 32, 32, 32, 32 to the servers in order")
    assert (derived.numbers["samples_per_rank"], derived.numbers["rollouts_per_rank"]) == (64, 192)


def test_a_long_row_of_servers_is_told_as_a_range():
    servers = [{"base_url": f"http://host:{port}", "tensor_parallel_size": 1} for port in range(8000, 8010)]
    matching = {"rollout_backend": "vllm", "decode_batch_size": 4, "best_of": 1}
    matching["vllm"] = {"server": {"servers": servers}}
    # 64 rollouts over 10 servers: 6 or 7 each
    sentence = derive({**MIXED, "custom": {"extra": {"rollout_matching": matching}}}, 2, None).sentence
    assert sentence.endswith("whose 64 rollouts go to 10 servers, about 6 to 7 each")


def test_a_topology_that_does_not_fit_has_no_numbers():
    with pytest.raises(ConfigError, match="cannot be dealt out evenly"):
        derive(MIXED, 2, 7)

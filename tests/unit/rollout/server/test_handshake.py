"""Each line of the page that a server which cannot be used gets, with its remedy."""

from dataclasses import replace

import pytest

from ds_stage2ab.config.servers import GLOO_TRANSFER, NCCL_TRANSFER
from ds_stage2ab.errors import ServerFault
from ds_stage2ab.rollout.server import http_client
from ds_stage2ab.rollout.server.api import NEEDED_ROUTES, ServerApi
from ds_stage2ab.rollout.server.handshake import TEMPERATURES, Requirements, check_servers
from tests.fakes import Fault, Settings
from tests.unit.handshakes import api, good_server, lines, only_line, page, seen
from tests.unit.parts import load_bench
from tests.unit.serving import needs_of


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(http_client, "FIRST_PAUSE_S", 0.005)


@pytest.fixture(scope="module")
def requirements(quickstart) -> Requirements:
    return needs_of(load_bench(quickstart, num_samples=1))


# --- a server that can be used ----------------------------------------------------------------------------------


def test_a_good_server(requirements):
    with good_server(requirements, world_size=6, tensor_parallel_size=2) as server:
        assert check_servers([api(server)], [2], requirements) == [seen(world_size=6, replicas=3)]
    asked = [request.path for request in server.requests]
    assert asked.count("/get_world_size/") == 1  # answered by a redirect, which is followed
    assert len(server.chats) == 1 and server.chats[0].body["max_completion_tokens"] == 1
    (tokenized,) = (request.body for request in server.requests if request.path == "/tokenize")
    assert tokenized["prompt"].startswith("<|coord_0|><|coord_1|>") and tokenized["add_special_tokens"] is False
    changing = {"/pause", "/resume", "/init_weight_transfer_engine", "/start_weight_update", "/reset_prefix_cache"}
    assert not changing & set(asked)


@pytest.mark.parametrize(("size", "replicas"), [(1, 6), (2, 3), (3, 2), (6, 1)])
def test_a_server_that_cannot_tell_its_replicas_has_those_of_the_config(requirements, size: int, replicas: int):
    with good_server(requirements, world_size=6, tensor_parallel_size=2, knows_include_dp=False) as server:
        assert check_servers([api(server)], [size], requirements) == [seen(world_size=6, replicas=replicas)]


def test_a_server_that_tells_its_replicas_knows_better_than_the_config(requirements):
    with good_server(requirements, world_size=6, tensor_parallel_size=2) as server:
        assert check_servers([api(server)], [6], requirements) == [seen(world_size=6, replicas=3)]


@pytest.mark.parametrize("mode", ["abort", "wait", "keep"])
def test_a_paused_server_is_let_go_on(requirements, mode: str):
    with good_server(requirements) as server:
        server.state.paused = mode
        assert check_servers([api(server)], [1], requirements) == [seen(world_size=1, replicas=1)]
        assert server.state.paused == ""


def test_vllms_own_engine_is_used_where_the_learner_can_send_to_it(requirements):
    with good_server(requirements, settings=Settings(weight_transfer=NCCL_TRANSFER)) as server:
        asked = replace(requirements, transfers=(NCCL_TRANSFER, GLOO_TRANSFER))
        assert check_servers([api(server)], [1], asked) == [seen(world_size=1, replicas=1, transfer=NCCL_TRANSFER)]


def test_bf16(requirements):
    with good_server(requirements, settings=Settings(dtype="torch.bfloat16")) as server:
        assert len(check_servers([api(server)], [1], replace(requirements, precision="bf16"))) == 1


def test_where_nothing_is_drawn_a_server_may_decode_ahead_and_what_it_leaves_out_is_said(requirements, capfd):
    with good_server(requirements, settings=Settings(speculative={"method": "custom_class"})) as server:
        (found,) = check_servers([api(server)], [1], replace(requirements, draws=False))
    assert found == replace(seen(world_size=1, replicas=1), drafts="custom_class")
    (told,) = capfd.readouterr().err.splitlines()
    assert told.startswith(f"warning: {server.base_url} decodes ahead (custom_class): the repetition guard does not ")


def test_just_long_enough(requirements):
    with good_server(requirements, max_model_len=512) as server:
        assert len(check_servers([api(server)], [1], requirements)) == 1


# --- line by line -----------------------------------------------------------------------------------------------


def test_unreachable(requirements):
    with good_server(requirements) as server:
        pass
    saw, fix = only_line(requirements, server)
    assert saw.startswith("reached: the connection failed in /openapi.json: ") and "refused" in saw
    assert fix == "start it, or correct base_url; when it has just been started, wait for its /health"


def test_it_hangs(requirements):
    told = r"reached: no answer to /openapi.json within 0.2 s\n +fix: start it"
    faults = (Fault("hang", path="/openapi.json"),)
    with good_server(requirements, faults=faults) as server, pytest.raises(ServerFault, match=told):
        check_servers([ServerApi(server.base_url, timeout_s=0.2, connections=1)], [1], requirements)


@pytest.mark.parametrize("route", NEEDED_ROUTES)
def test_a_route_is_missing(requirements, route: str):
    with good_server(requirements) as server:
        server.state.removed.add(route)
        saw, fix = only_line(requirements, server)
    assert saw == f"routes: it has no {route}"
    assert fix == "start it with VLLM_SERVER_DEV_MODE=1 and --enable-scale-out, on a loopback or closed network"


def test_all_missing_routes_are_one_line(requirements):
    with good_server(requirements) as server:
        server.state.removed |= {"/pause", "/update_weights"}
        assert only_line(requirements, server)[0] == "routes: it has no /pause, /update_weights"


@pytest.mark.parametrize("version", ["0.31.2", "0.33.0", "0.320.0", "1.32.0", "dev"])
def test_another_version(requirements, version: str):
    with good_server(requirements, version=version) as server:
        saw, fix = only_line(requirements, server)
    assert (saw, fix) == (f"version: {version}", "use vLLM 0.32: other versions have other routes for weights")


def test_a_patch_release_is_supported(requirements):
    with good_server(requirements, version="0.32.7+cpu") as server:
        assert len(check_servers([api(server)], [1], requirements)) == 1


TRANSFER = (
    'start it with --weight-transfer-config \'{"backend": "ds_stage2ab_gloo"}\','
    " with this package installed in its environment"
)
SETTINGS = [
    ({"weight_transfer": "nccl"}, "weight transfer: nccl; this learner can send over ds_stage2ab_gloo", TRANSFER),
    ({"weight_transfer": None}, "weight transfer: None; this learner can send over ds_stage2ab_gloo", TRANSFER),
    ({"generation_config": "auto"}, "generation config: auto, not vllm", "start it with --generation-config vllm"),
    ({"dtype": "torch.bfloat16"}, "precision: bfloat16, not float32", "start it with --dtype float32"),
    (
        {"logprobs_mode": "processed_logprobs"},
        "log-probabilities: processed_logprobs, not raw_logprobs",
        "start it with --logprobs-mode raw_logprobs",
    ),
    (
        {"max_num_seqs": 256},
        "decode batch: it decodes 256 sequences at once, custom.extra.rollout_matching.decode_batch_size is 4",
        "start it with --max-num-seqs 4",
    ),
    (
        {"override": {"max_new_tokens": 10}},
        "generation override: {'max_new_tokens': 10} for every request",
        "start it without --override-generation-config",
    ),
    (
        {"speculative": {"method": "ngram", "num_speculative_tokens": 4}},
        "speculation: it decodes ahead (ngram) and leaves out the draws of this package: it would sample other answers",
        "start it without --speculative-config, or set " + " and ".join(TEMPERATURES) + " to 0",
    ),
]


@pytest.mark.parametrize(("changes", "saw", "fix"), SETTINGS)
def test_it_was_started_otherwise(requirements, changes: dict, saw: str, fix: str):
    with good_server(requirements, settings=Settings(**changes)) as server:
        assert only_line(requirements, server) == (saw, fix)


def test_another_name(requirements):
    with good_server(requirements, model="/models/qwen") as server:
        saw, fix = only_line(requirements, server)
    assert (saw, fix) == (
        "served name: /models/qwen, not ds_stage2ab",
        "start it with --served-model-name ds_stage2ab",
    )


def test_too_short(requirements):
    with good_server(requirements, max_model_len=511) as server:
        saw, fix = only_line(requirements, server)
    assert saw == "length: it takes 511 tokens, prompt and answer need 512"
    assert fix == "start it with --max-model-len 512 or more"


def test_settings_of_another_form(requirements, monkeypatch):
    with good_server(requirements) as server:
        monkeypatch.setattr(server, "settings", replace(Settings(), max_num_seqs=None))
        saw, fix = only_line(requirements, server)
    assert saw.startswith("settings: an answer of another form (TypeError: ")
    assert fix.startswith("use a vLLM of the supported range")


def test_devices_that_make_no_whole_replicas(requirements):
    with good_server(requirements, world_size=6, tensor_parallel_size=2, knows_include_dp=False) as server:
        saw, fix = only_line(requirements, server, sizes=(4,))
    assert saw == "replicas: 6 devices do not make whole replicas of 4"
    assert fix == "set tensor_parallel_size to what the server runs with"


def test_a_redirect_to_another_origin_is_no_answer(requirements):
    with good_server(requirements, faults=(Fault("redirect", path="/get_world_size/"),)) as server:
        saw, fix = only_line(requirements, server)
    assert saw.startswith("devices: sends us from /get_world_size/ to another origin, http://localhost:") and fix


# --- the page ---------------------------------------------------------------------------------------------------


def test_everything_wrong_is_on_one_page(requirements):
    wrong = Settings(generation_config="auto", dtype="torch.float16", max_num_seqs=8, weight_transfer="nccl")
    faults = (Fault("prompt"),)
    with good_server(requirements, version="0.31.0", max_model_len=100, settings=wrong, faults=faults) as server:
        found = lines(page(requirements, server))
    whats = [saw.partition(":")[0] for saw, _ in found]
    told = ["version", "weight transfer", "generation config", "precision", "length", "decode batch", "prompt"]
    assert whats == told


def test_every_server_has_its_own_part(requirements):
    """The second of three is as it must be."""
    with (
        good_server(requirements, version="0.30.0") as first,
        good_server(requirements) as second,
        good_server(requirements, max_model_len=2) as third,
        pytest.raises(ServerFault) as caught,
    ):
        check_servers([api(one) for one in (first, second, third)], [1, 1, 1], requirements)
    text = caught.value.why
    assert text.startswith(f"2 of 3 rollout servers cannot be used\n  {first.base_url}\n    version: 0.30.0\n")
    assert f"  {third.base_url}\n    length: it takes 2 tokens" in text and second.base_url not in text

"""Servers behind a key: what the real HTTP client sends to a real socket, and that nothing shows the key."""

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest

from ds_stage2ab.config import servers as config_servers
from ds_stage2ab.config.sections import ServerSection
from ds_stage2ab.config.servers import API_KEY_ENV, api_key
from ds_stage2ab.errors import ConfigError, ServerFault
from ds_stage2ab.launch.command import with_key
from ds_stage2ab.rollout.server import connect
from ds_stage2ab.rollout.server.api import ServerApi
from ds_stage2ab.rollout.server.handshake import check_servers
from ds_stage2ab.rollout.server.http_client import ClientError, HttpClient
from tests.loopback import LoopbackServer
from tests.unit.config.checked import check_file
from tests.unit.handshakes import good_server, lines
from tests.unit.parts import MATCHING, load_bench
from tests.unit.serving import LONG, needs_of

KEY = "sk-a-secret/of+two=words"
VARIABLE = "STAGE2_TEST_KEY"


class Heard(LoopbackServer):
    """Answers every request with what it was sent."""

    def __init__(self, status=200):
        super().__init__()
        self.status = status
        self.seen = []

    def respond(self, exchange):
        self.seen.append((exchange.path, exchange.headers.get("Authorization")))
        told = json.dumps({"seen": exchange.headers.get("Authorization"), "more": "x" * 400})
        exchange.send(self.status, told.encode(), {"Content-Type": "application/json"})


def guarded(server, key):
    """The server, refusing as vLLM does what begins with /v1 and has no such key."""
    respond = server.respond

    def checked(exchange):
        if exchange.path.startswith("/v1") and exchange.headers.get("Authorization") != f"Bearer {key}":
            exchange.send(401, b'{"error": "Unauthorized"}', {"Content-Type": "application/json"})
        else:
            respond(exchange)

    server.respond = checked
    return server


def test_every_request_carries_the_key():
    with Heard() as server:
        api = ServerApi(server.base_url, timeout_s=LONG, connections=1, api_key=KEY)
        api.get("/version")
        api.chat({"messages": []}, read_s=LONG, replica=1)
        ServerApi(server.base_url, timeout_s=LONG, connections=1).get("/health")
    assert server.seen == [
        ("/version", f"Bearer {KEY}"),
        ("/v1/chat/completions", f"Bearer {KEY}"),
        ("/health", None),
    ]


def test_a_refusal_that_repeats_the_key_is_told_without_it():
    with Heard(status=400) as server:
        client = HttpClient(server.base_url, connect_s=LONG, connections=1, api_key=KEY)
        with pytest.raises(ClientError) as caught:
            client.call("GET", "/version", read_s=LONG, repeat=False)
    assert "Bearer ***" in str(caught.value) and KEY not in str(caught.value)


@pytest.fixture(scope="module")
def requirements(quickstart):
    return needs_of(load_bench(quickstart, num_samples=1))


def test_a_server_behind_a_key_is_used_with_it(requirements):
    with guarded(good_server(requirements), KEY) as server:
        with_it = ServerApi(server.base_url, timeout_s=LONG, connections=2, api_key=KEY)
        assert len(check_servers([with_it], [1], requirements)) == 1


@pytest.mark.parametrize("variable", [VARIABLE, None])
def test_a_run_sends_what_the_variable_of_its_config_holds(requirements, world, monkeypatch, variable):
    monkeypatch.setenv(VARIABLE, KEY)
    with guarded(good_server(requirements), KEY) as server:
        address = ServerSection(base_url=server.base_url, group_port=None, tensor_parallel_size=1)
        section = replace(MATCHING.vllm.server, servers=(address,), api_key_env=variable, timeout_s=LONG)
        open_section = SimpleNamespace(server=section)
        if variable:
            assert connect._looked_at(open_section, lambda: None, requirements, world)[0] == KEY
        else:
            with pytest.raises(ServerFault, match="it asks for a key"):
                connect._looked_at(open_section, lambda: None, requirements, world)


@pytest.mark.parametrize("key", [None, "another"])
def test_without_the_key_the_page_says_where_to_put_it(requirements, key):
    with guarded(good_server(requirements), KEY) as server:
        without = ServerApi(server.base_url, timeout_s=LONG, connections=2, api_key=key)
        with pytest.raises(ServerFault) as caught:
            check_servers([without], [1], requirements)
        ((saw, fix),) = lines(caught.value.why.replace(server.base_url, "http://ADDRESS"))
    assert saw.startswith("an answer: the server refused /v1/chat/completions with 401: ") or "with 401" in saw
    assert fix == f"it asks for a key: set {API_KEY_ENV} to the name of the environment variable that holds it"


@pytest.mark.parametrize(("value", "key"), [(KEY, KEY), (f" {KEY}\n", KEY)])
def test_the_key_comes_from_the_environment(monkeypatch, value, key):
    monkeypatch.setenv(VARIABLE, value)
    assert api_key(VARIABLE) == key
    assert api_key(None) is None


@pytest.mark.parametrize("value", [None, "", " ", "two words", "caf\u00e9", "a\x1bb"])
def test_what_is_no_key_is_a_fault_that_shows_neither(monkeypatch, value):
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setitem(config_servers.os.environ, VARIABLE, value)
    with pytest.raises(ConfigError) as caught:
        api_key(VARIABLE)
    assert caught.value.where == API_KEY_ENV
    assert VARIABLE not in str(caught.value) and (not (value or "").strip() or value not in str(caught.value))


def test_the_key_in_the_place_of_the_name_is_not_shown(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "training: {effective_batch_size: 8}\nstage2_ab: {schedule: {b_ratio: 0}}\nmodel: {path: m}\n"
        "data: {train: t.jsonl, user_prompt: Look.}\n"
        f"custom: {{extra: {{rollout_matching: {{vllm: {{server: {{api_key_env: {KEY}}}}}}}}}}}\n"
    )
    (problem,) = check_file(path)
    assert problem.why == "must be the name of an environment variable, not the key itself"


def test_servers_that_launch_starts_ask_for_this_key_and_no_other():
    inherited = {"PATH": "/bin", "VLLM_API_KEY": "of somebody"}
    assert with_key(inherited, None) == {"PATH": "/bin"}
    assert with_key(inherited, KEY) == {"PATH": "/bin", "VLLM_API_KEY": KEY}
    assert "VLLM_API_KEY" not in os.environ

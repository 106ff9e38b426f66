"""The fake server and the proxy themselves, over real sockets."""

import base64
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from tests.architecture.sources import ROOT
from tests.fake_faults import ANY_REPLY, CHAT_REPLY
from tests.fakes import CHAT, FakeServer, Fault, Settings
from tests.proxy import WEIGHT_ROUTES, Proxy

ASK = {"messages": [], "return_token_ids": True, "stop_token_ids": [7], "logprobs": True, "top_logprobs": 1}
LONG = 60.0  # seconds that no test waits for


def call(server, path: str, body: dict | None = None, *, timeout: float = LONG):
    """(status, reply or None, headers); GET without a body."""
    url = urlsplit(server.base_url)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=timeout)
    try:
        content = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, content)
        response = connection.getresponse()
        text = response.read()
        return response.status, json.loads(text) if text else None, response.headers
    finally:
        connection.close()


def until(condition):
    limit = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


def chat(server, **changes):
    return call(server, CHAT, ASK | changes)[1]


# --- what it says when nothing is wrong -------------------------------------------------------------------------


def test_completion_has_ids_only_when_asked():
    with FakeServer(prompt_ids=lambda body: [5, 6], logprobs=lambda body, ids: [-0.25, -1.0, 0.0]) as server:
        reply = chat(server, return_tokens_as_token_ids=True)
        plain = chat(server, return_token_ids=False, logprobs=False)
    [choice] = reply["choices"]
    assert (choice["token_ids"], choice["finish_reason"], choice["stop_reason"]) == ([11, 12, 7], "stop", 7)
    content = choice["logprobs"]["content"]
    assert [(entry["token"], entry["logprob"]) for entry in content] == [
        ("token_id:11", -0.25),
        ("token_id:12", -1.0),
        ("token_id:7", 0.0),
    ]
    assert reply["prompt_token_ids"] == [5, 6] and reply["usage"]["total_tokens"] == 5
    assert plain["prompt_token_ids"] is plain["choices"][0]["token_ids"] is plain["choices"][0]["logprobs"] is None


def test_replicas_and_the_redirect():
    with FakeServer(world_size=6, tensor_parallel_size=2) as server:
        status, _, headers = call(server, "/get_world_size/?include_dp=false")
        assert (status, headers["Location"]) == (307, f"{server.base_url}/get_world_size?include_dp=false")
        assert call(server, "/get_world_size")[1] == {"world_size": 6}
        assert call(server, "/get_world_size?include_dp=false")[1] == {"world_size": 2}
    with FakeServer(world_size=6, tensor_parallel_size=2, knows_include_dp=False) as server:
        assert call(server, "/get_world_size?include_dp=false")[1] == {"world_size": 6}
        assert "parameters" not in call(server, "/openapi.json")[1]["paths"]["/get_world_size"]["get"]


def test_information_routes():
    with FakeServer(max_model_len=123) as server:
        assert call(server, "/health")[:2] == (200, None)
        assert call(server, "/version")[1] == {"version": "0.32.0"}
        assert call(server, "/v1/models")[1]["data"][0]["max_model_len"] == 123
        info = call(server, "/server_info?config_format=json")[1]
        assert info["vllm_config"]["parallel_config"]["tensor_parallel_size"] == 1
        assert CHAT in call(server, "/openapi.json")[1]["paths"]
        assert call(server, "/nothing")[0] == 404 and call(server, "/pause")[0] == 405
        server.state.removed.add("/weight_info")
        assert call(server, "/weight_info")[0] == 404
        assert "/weight_info" not in call(server, "/openapi.json")[1]["paths"]


def test_what_becomes_of_a_prompt_and_a_text():
    """Of the sampling fields vLLM tells those that are not as by default."""
    ask = ASK | {"ignore_eos": True}
    with FakeServer(settings=Settings(added_stop_ids=(9,)), tokenize=lambda text: [len(text)]) as server:
        server.state.image = b"pixels"
        told = call(server, f"{CHAT}/render", ask)[1]
        assert told["features"]["kwargs_data"]["image"] == [base64.b64encode(b"pixels").decode()]
        assert told["sampling_params"] == {"stop_token_ids": [7, 9], "ignore_eos": True}
        assert call(server, f"{CHAT}/render", ASK)[1]["sampling_params"] == {"stop_token_ids": [7, 9]}
        assert call(server, "/tokenize", {"prompt": "abc"})[1]["tokens"] == [3]
    with FakeServer(settings=Settings(ignores_eos=False)) as server:
        assert call(server, f"{CHAT}/render", ask)[1]["sampling_params"] == {"stop_token_ids": [7]}


class Lame:
    """Workers that meet the learner and then fail."""

    def join(self, invitation: dict):
        self.invitation = invitation

    def take(self, bucket: dict):
        raise RuntimeError("connection closed")


def test_workers_take_their_part():
    with FakeServer(workers=Lame()) as server:
        assert call(server, "/init_weight_transfer_engine", {"init_info": {"port": 5}})[0] == 200
        assert server.workers.invitation == {"port": 5}
        call(server, "/start_weight_update", {})
        status, reply, _ = call(server, "/update_weights", {"update_info": {}})
        assert status == 500 and reply["error"]["message"] == "connection closed"


def test_weight_update_in_order():
    with FakeServer() as server:
        assert call(server, "/update_weights", {"update_info": {}})[0] == 500
        assert call(server, "/init_weight_transfer_engine", {})[0] == 400
        assert call(server, "/init_weight_transfer_engine", {"init_info": {}})[0] == 200
        assert call(server, "/start_weight_update", {})[0] == 200
        assert call(server, "/start_weight_update", {})[0] == 500
        assert call(server, "/update_weights", {"update_info": {}})[0] == 200
        assert call(server, "/weight_info")[1] == {"weight_version": "default"}
        assert call(server, "/finish_weight_update", {"weight_version": "a/1"})[0] == 200
        assert call(server, "/weight_info")[1] == {"weight_version": "a/1"}
        server.state.keeps_version = True
        call(server, "/start_weight_update", {})
        assert call(server, "/finish_weight_update", {"weight_version": "a/2"})[0] == 200
        assert call(server, "/weight_info")[1] == {"weight_version": "a/1"}
        assert call(server, "/update_weight_version", {"new_version": "b"})[1]["new_version"] == "b"
        assert call(server, "/reset_prefix_cache", {})[1] == {"success": True}
        assert call(server, "/reset_mm_cache", {})[:2] == call(server, "/reset_encoder_cache", {})[:2] == (200, None)


# --- faults -----------------------------------------------------------------------------------------------------


def test_fault_takes_the_chosen_requests_alone():
    faults = (Fault("500", when={0, 2}), Fault("429", when=lambda number, body: body["seed"] == 9, retry_after="3"))
    with FakeServer(faults=faults) as server:
        answers = [call(server, CHAT, ASK | {"seed": seed}) for seed in (1, 9, 9, 4)]
    assert [status for status, _, _ in answers] == [500, 429, 500, 200]
    assert answers[1][2]["Retry-After"] == "3"
    assert [request.fault for request in server.chats] == ["500", "429", "500", ""]


@pytest.mark.parametrize("path", [CHAT, "/update_weights"])
def test_hang_ends_with_its_client(path: str):
    with FakeServer(faults=(Fault("hang", path=path),)) as server:
        with pytest.raises(TimeoutError):
            call(server, path, ASK, timeout=0.1)
        until(lambda: server.requests[0].end is not None)


def test_hang_ends_with_the_server():
    with FakeServer(faults=(Fault("hang"),)) as server, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(call, server, CHAT, ASK)
        until(lambda: server.chats)
        server.__exit__()
        assert isinstance(asked.exception(LONG), OSError | http.client.HTTPException)


@pytest.mark.parametrize("path", [CHAT, "/update_weights"])
def test_drip_is_no_silence_and_ends_with_its_client(path: str):
    with FakeServer(faults=(Fault("drip", path=path),)) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=LONG) as client:
            client.sendall(f"POST {path} HTTP/1.1\r\nContent-Length: 0\r\n\r\n".encode())
            seen = b""
            while len(seen) < 25:
                seen += client.recv(100)
        assert seen.startswith(b"HTTP/1.1 200 OK\r\nXXXX")
        until(lambda: server.requests[0].end is not None)


@pytest.mark.parametrize("kind", ["400", "404", "500", "503"])
def test_a_status(kind: str):
    with FakeServer(faults=(Fault(kind, retry_after="3"),)) as server:
        status, reply, headers = call(server, CHAT, ASK)
    assert (status, reply["error"]["code"]) == (int(kind), int(kind))
    assert headers["Retry-After"] == ("3" if kind == "503" else None)


@pytest.mark.parametrize("path", [CHAT, "/health"])
def test_half_a_body(path: str):
    with FakeServer(faults=(Fault("half", path=path),)) as server, pytest.raises(http.client.IncompleteRead):
        call(server, path, ASK if path == CHAT else None)


@pytest.mark.parametrize("chunked", [False, True])
def test_huge_body_is_made_as_it_is_read(chunked: bool):
    with FakeServer(faults=(Fault("huge", chunked=chunked),)) as server:
        url = urlsplit(server.base_url)
        connection = http.client.HTTPConnection(url.hostname, url.port, timeout=LONG)
        connection.request("POST", CHAT, json.dumps(ASK))
        response = connection.getresponse()
        assert response.headers["Content-Length"] == (None if chunked else "1000000000")
        assert len(response.read(1 << 20)) == 1 << 20
        response.close()
        connection.close()
        until(lambda: not server._listener.live)
        assert 1 << 20 <= server.chats[0].written < 10**9


def test_huge_body_is_whole():
    with FakeServer(faults=(Fault("huge", size=300_000, chunked=True),)) as server, pytest.raises(ValueError) as caught:
        chat(server)
    assert len(caught.value.doc) == 300_000


def test_replies_that_no_client_may_take():
    numbered = enumerate(("count", "vocabulary", "prompt", "no_ids", "empty"))
    faults = [Fault(kind, when={number}) for number, kind in numbered] + [Fault("count", when={5}, choices=0)]
    with FakeServer(faults=tuple(faults)) as server:
        two, vocabulary, prompt, no_ids, empty, none = (chat(server) for _ in range(6))
    assert [choice["index"] for choice in two["choices"]] == [0, 1] and none["choices"] == []
    assert vocabulary["choices"][0]["token_ids"] == [11, 12, 2**31]
    assert prompt["prompt_token_ids"] == [1, 2, 4]
    assert no_ids["choices"][0]["token_ids"] is no_ids["prompt_token_ids"] is None
    assert (empty["choices"][0]["token_ids"], empty["choices"][0]["finish_reason"]) == ([], "length")


def test_redirect_names_another_origin():
    with FakeServer(faults=(Fault("redirect", path="/get_world_size/"),)) as server:
        status, _, headers = call(server, "/get_world_size/")
    assert (status, headers["Location"]) == (307, f"http://localhost:{server.port}/get_world_size/")


# --- requests in flight -----------------------------------------------------------------------------------------


def test_most_in_flight_is_what_the_clients_kept():
    """Five threads that refill at once: never six, although an answer and the next request cross."""
    with FakeServer(seconds=lambda body: 0.002 * (body["seed"] % 3)) as server, ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda seed: chat(server, seed=seed), range(200)))
    assert server.most_in_flight == 5 and len(server.chats) == 200
    assert server.timeline()[-1][1] == 0 and all(request.end >= request.start for request in server.chats)
    odd = server.timeline(lambda request: request.body["seed"] % 2 == 1)
    assert len(odd) == 200 and min(count for _, count in odd) == 0  # 100 arrivals and 100 ends


def test_request_given_up_is_not_in_flight_with_its_retry():
    with FakeServer(faults=(Fault("hang"),)) as server:
        for _ in range(20):
            with pytest.raises(TimeoutError):
                call(server, CHAT, ASK, timeout=0.02)
    assert server.most_in_flight == 1


@pytest.mark.parametrize("mode", ["abort", "wait", "keep"])
def test_pause_meets_requests_in_flight(mode: str):
    def seconds(body: dict) -> float:
        if mode == "keep":
            until(lambda: any(request.path == "/pause" and request.end for request in server.requests))
        return {"abort": LONG, "wait": 0.1, "keep": 0.0}[mode]

    with FakeServer(seconds=seconds) as server, ThreadPoolExecutor(1) as pool:
        before = pool.submit(chat, server)
        until(lambda: server.most_in_flight == 1)
        assert call(server, f"/pause?mode={mode}", {})[1] == {"status": "paused"}
        assert call(server, "/is_paused")[1] == {"is_paused": True}
        ended = server.chats[0].end
        assert (ended is not None) if mode == "wait" else (mode == "abort" or ended is None)
        assert call(server, "/resume", {})[0] == 200
        assert before.result(LONG)["choices"][0]["finish_reason"] == ("abort" if mode == "abort" else "stop")


def test_request_sent_in_a_pause_waits_for_its_end():
    with FakeServer() as server, ThreadPoolExecutor(1) as pool:
        call(server, "/pause", {})
        late = pool.submit(chat, server)
        until(lambda: server.chats)
        assert not late.done()
        call(server, "/resume", {})
        assert late.result(LONG)["choices"][0]["finish_reason"] == "stop"
    assert server.chats[0].while_paused


def test_abort_by_name():
    with FakeServer(seconds=lambda body: LONG) as server, ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(chat, server, request_id=name) for name in "ab"]
        until(lambda: server.most_in_flight == 2)
        assert call(server, "/abort_requests", {"request_ids": ["chatcmpl-b"]})[1]["aborted"] == 1
        assert asked[1].result(LONG)["choices"][0]["token_ids"] == [] and not asked[0].done()
        assert call(server, "/abort_requests", {})[1]["aborted"] == 1


def test_nothing_is_left_after_the_server():
    threads = threading.active_count()
    with FakeServer() as server:
        chat(server)
    until(lambda: threading.active_count() <= threads)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=LONG)


# --- the proxy --------------------------------------------------------------------------------------------------


def test_proxy_swallows_weight_routes_alone():
    with FakeServer(world_size=4, faults=(Fault("429", when={1}),)) as server, Proxy(server.base_url) as proxy:
        assert call(proxy, "/weight_info")[1] == {"weight_version": "default"}
        for path in sorted(WEIGHT_ROUTES - {"/finish_weight_update"}):
            assert list(call(proxy, path, {})[1]) == ["message"]
        assert call(proxy, "/finish_weight_update", {"weight_version": "a/3"})[0] == 200
        assert call(proxy, "/weight_info")[1] == {"weight_version": "a/3"}
        assert chat(proxy)["choices"][0]["token_ids"] == [11, 12, 7]
        status, _, headers = call(proxy, CHAT, ASK)
        assert (status, headers["Retry-After"]) == (429, "1")
        assert call(proxy, "/get_world_size/")[2]["Location"] == f"{proxy.base_url}/get_world_size"
        assert call(proxy, "/pause?mode=keep", {})[0] == 200
    assert server.state.weight_version == "default" and server.state.paused == "keep"
    assert not WEIGHT_ROUTES & {request.path for request in server.requests}
    assert proxy.paths[0] == ("/weight_info", False) and proxy.paths[1] == ("/init_weight_transfer_engine", True)


def test_proxy_that_passes_everything():
    with FakeServer() as server, Proxy(server.base_url, passing=True) as proxy:
        assert call(proxy, "/finish_weight_update", {"weight_version": "a"})[0] == 500
        assert call(proxy, "/start_weight_update", {})[0] == 200
        assert call(proxy, "/finish_weight_update", {"weight_version": "a"})[0] == 200
    assert server.state.weight_version == "a"


def test_proxy_of_a_dead_or_frozen_server():
    with FakeServer(faults=(Fault("hang", path="/health"),)) as server, Proxy(server.base_url, timeout=0.1) as proxy:
        assert call(proxy, "/health")[0] == 502
    with Proxy(server.base_url) as proxy:
        assert call(proxy, "/health")[0] == 502


def by_hand(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LONG, check=False)


@pytest.mark.parametrize("module", ["tests.fakes", "tests.proxy"])
def test_help(module: str):
    told = by_hand(module, "--help")
    assert told.returncode == 0 and told.stdout.startswith(f"usage: python -m {module} ")
    if module == "tests.fakes":
        assert all(kind in told.stdout for kind in (*ANY_REPLY, *CHAT_REPLY)) and "KIND[@PATH][:N,N...]" in told.stdout


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("hng", "/v1/chat/completions has no fault 'hng'"),
        ("count@/pause", "/pause has no fault 'count'"),
        ("hang:x", "invalid literal for int"),
    ],
)
def test_a_fault_that_there_is_not(fault: str, why: str):
    told = by_hand("tests.fakes", "--fault", fault)
    assert told.returncode == 2 and f"error: argument --fault: '{fault}': {why}" in told.stderr


@pytest.mark.parametrize("words", [["tests.fakes", "--fault", "429:0"], ["tests.proxy", "http://127.0.0.1:9"]])
def test_by_hand(words: list[str]):
    command = [sys.executable, "-m", *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = urlsplit(process.stdout.readline().strip())
            connection = http.client.HTTPConnection(address.hostname, address.port, timeout=LONG)
            connection.request("POST", CHAT, json.dumps(ASK))
            assert connection.getresponse().status == (429 if words[0] == "tests.fakes" else 502)
            connection.close()
        finally:
            process.terminate()
            process.wait(LONG)

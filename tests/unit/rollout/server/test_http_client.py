"""One server that misbehaves, over real sockets: each fault ends as stated, in bounded time."""

import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from ds_stage2ab.rollout.server import http_client
from ds_stage2ab.rollout.server.http_client import (
    TRIES,
    ClientError,
    HttpClient,
    ProtocolError,
    ReadTimeout,
    ServerUnavailable,
)
from tests.fakes import CHAT, FakeServer, Fault

ASK = {"messages": [], "return_token_ids": True}
LONG = 30.0  # seconds that no test waits for


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(http_client, "FIRST_PAUSE_S", 0.01)


def opened(server, connect_s: float = LONG) -> HttpClient:
    return HttpClient(server.base_url, connect_s=connect_s, connections=2)


def chat(server, *, read_s: float = LONG, repeat: bool = True):
    return opened(server).call("POST", CHAT, ASK, read_s=read_s, repeat=repeat)


@contextmanager
def ends_with(kind: type[Exception], text: str, *, within_s: float):
    """The block raises exactly this kind, with this text, in this time."""
    begun = time.monotonic()
    with pytest.raises(kind) as caught:
        yield
    assert time.monotonic() - begun < within_s
    assert type(caught.value) is kind and text in str(caught.value)


@contextmanager
def sending(*parts: bytes, every_s: float = 0.0, then_wait: bool = False):
    """The address of a server that answers its requests with these bytes, and how many requests it took."""
    listener = socket.create_server(("127.0.0.1", 0))
    over, taken = threading.Event(), []

    def answer(connection: socket.socket):
        with connection, suppress(OSError):
            connection.recv(2**16)
            for part in parts:
                connection.sendall(part)
                over.wait(every_s)
            if then_wait:
                over.wait(LONG)

    def serve():
        with suppress(OSError):  # until the listener is shut down
            while True:
                taken.append(listener.accept()[0])
                threading.Thread(target=answer, args=(taken[-1],), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", taken
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(LONG)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


# --- answers ----------------------------------------------------------------------------------------------------


def test_an_answer_and_an_empty_one():
    with FakeServer() as server:
        reply = chat(server)
        assert reply["choices"][0]["token_ids"] == [11, 12, 2]
        assert opened(server).call("GET", "/health", read_s=LONG, repeat=False) is None


def test_connections_are_kept():
    with FakeServer() as server:
        line = opened(server)
        for _ in range(3):
            line.call("GET", "/version", read_s=LONG, repeat=False)
            line.call("GET", "/health", read_s=LONG, repeat=False)
    assert len({request.connection for request in server.requests}) == 1


def test_proxies_of_the_environment_are_not_used(monkeypatch):
    with FakeServer() as server:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        assert chat(server, repeat=False)["choices"]


def test_what_is_refused_is_not_repeated():
    with FakeServer() as server, ends_with(ClientError, "refused /nothing with 404", within_s=LONG):
        opened(server).call("GET", "/nothing", read_s=LONG, repeat=True)
    assert len(server.requests) == 1


# --- silence ----------------------------------------------------------------------------------------------------


def test_a_server_that_hangs_is_not_asked_again():
    with FakeServer(faults=(Fault("hang"),)) as server:
        with ends_with(ReadTimeout, f"no answer to {CHAT} within 0.2 s", within_s=2):
            chat(server, read_s=0.2)
        assert len(server.chats) == 1


def test_a_server_that_stops_within_its_answer_is_not_asked_again():
    with sending(HEAD % 100 + b'{"id"', then_wait=True) as (address, taken):
        with ends_with(ReadTimeout, "no answer to /x within 0.2 s", within_s=2):
            HttpClient(address, connect_s=LONG, connections=1).call("GET", "/x", read_s=0.2, repeat=True)
        assert len(taken) == 1


LINES = b"HTTP/1.1 200 OK\r\n" + b"X-More: 1\r\n" * 90
DRIPS = {
    "the first line": b"HTTP/1.1 " + b"2" * 1000,
    "the header": LINES,
    "the body": HEAD % 1000 + b" " * 1000,
    "a body that ends with its connection": b"HTTP/1.1 200 OK\r\n\r\n" + b"1" * 1000,
    "the length of a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 1000,
}


@pytest.mark.parametrize("part", DRIPS)
def test_an_answer_byte_by_byte_ends_too(part: str):
    """Every byte comes in time; the whole would take 100 s. Where it is cut looks like an end, and is none."""
    first, rest = DRIPS[part][: 10 if part in ("the first line", "the header") else 45], DRIPS[part]
    rest = rest[len(first) :]
    with sending(first, *(rest[n : n + 1] for n in range(len(rest))), every_s=0.1) as (address, taken):
        with ends_with(ReadTimeout, "no answer to /x within 0.5 s", within_s=3):
            HttpClient(address, connect_s=LONG, connections=1).call("GET", "/x", read_s=0.5, repeat=True)
        assert len(taken) == 1


def test_nobody_takes_the_connection():
    """A listener with a full queue, which is how a frozen machine looks."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        place = listener.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(place)
        line = HttpClient(f"http://127.0.0.1:{place[1]}", connect_s=0.2, connections=1)
        with ends_with(ReadTimeout, "no connection within 0.2 s", within_s=2):
            line.call("GET", "/health", read_s=LONG, repeat=True)
        for one in waiting:
            one.close()


# --- failures that are repeated ---------------------------------------------------------------------------------


@pytest.mark.parametrize("repeat", [True, False])
def test_an_error_of_the_server(repeat: bool):
    with (
        FakeServer(faults=(Fault("500"),)) as server,
        ends_with(ServerUnavailable, f"answered 500 to {CHAT}: ", within_s=LONG),
    ):
        chat(server, repeat=repeat)
    assert len(server.chats) == (TRIES if repeat else 1)


def test_the_last_try_may_succeed():
    with FakeServer(faults=(Fault("500", when={0}), Fault("half", when={1}))) as server:
        assert chat(server)["choices"][0]["token_ids"] == [11, 12, 2]
    assert [request.fault for request in server.chats] == ["500", "half", ""]


def test_half_an_answer():
    with (
        FakeServer(faults=(Fault("half"),)) as server,
        pytest.raises(ServerUnavailable, match=f"the connection failed in {CHAT}: .*[0-9]+ bytes") as caught,
    ):
        chat(server)
    assert type(caught.value) is ServerUnavailable and len(server.chats) == TRIES


def test_connection_refused():
    with FakeServer() as server:
        pass
    with ends_with(ServerUnavailable, "Connection refused", within_s=2):
        chat(server)


def test_pauses_grow(monkeypatch):
    """From 0.2 s, doubled, each from its upper half: 0.1 to 0.2 s, then 0.2 to 0.4 s."""
    monkeypatch.setattr(http_client, "FIRST_PAUSE_S", 0.2)
    with FakeServer(faults=(Fault("500"),)) as server, pytest.raises(ServerUnavailable):
        chat(server)
    first, second, third = (request.start for request in server.chats)
    assert second - first >= 0.1 and third - second >= 0.2
    pauses = [http_client._jittered(0.2, iter([draw]).__next__) for draw in (0.0, 0.5, 1.0)]
    assert pauses == pytest.approx([0.1, 0.15, 0.2])


# --- a busy server ----------------------------------------------------------------------------------------------


def test_a_busy_server_says_when_to_come_back():
    with FakeServer(faults=(Fault("429", when={0}, retry_after="1"),)) as server:
        assert chat(server)["choices"]
    first, second = server.chats
    assert 1.0 <= second.start - first.start < 5


def test_nobody_is_kept_away_for_long(monkeypatch):
    monkeypatch.setattr(http_client, "LONGEST_PAUSE_S", 0.05)
    with (
        FakeServer(faults=(Fault("429", retry_after="3600"),)) as server,
        pytest.raises(ServerUnavailable, match=f"answered 429 to {CHAT}"),
    ):
        chat(server, read_s=LONG)
    first, second, third = (request.start for request in server.chats)
    assert second - first >= 0.05 and third - second >= 0.05


def test_a_date_is_an_ordinary_pause():
    with FakeServer(faults=(Fault("429", when={0}, retry_after="Wed, 21 Oct 2065 07:28:00 GMT"),)) as server:
        assert chat(server)["choices"]


# --- answers that are not taken ---------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
def test_a_huge_answer_is_cut(chunked: bool, monkeypatch):
    monkeypatch.setattr(http_client, "MOST_BYTES", 2**21)
    with FakeServer(faults=(Fault("huge", chunked=chunked),)) as server:
        with ends_with(ProtocolError, f"the answer to {CHAT} is larger than 2 MiB", within_s=10):
            chat(server, repeat=False)
        # what the sockets hold comes on top of what was read
        assert 2**21 <= server.chats[0].written < 2**25


def test_the_largest_answer_is_taken(monkeypatch):
    """One string of 300,000 bytes that never ends: read whole, then found to be no JSON."""
    monkeypatch.setattr(http_client, "MOST_BYTES", 300_000)
    with (
        FakeServer(faults=(Fault("huge", size=300_000),)) as server,
        ends_with(ProtocolError, "is no JSON", within_s=10),
    ):
        chat(server, repeat=False)


@pytest.mark.parametrize("content", [b"<html>busy</html>", b"\xff\xfe", b"[" * 100_000])
def test_no_json(content: bytes):
    with (
        sending(HEAD % len(content) + content) as (address, _),
        ends_with(ProtocolError, "the answer to /x is no JSON: ", within_s=LONG),
    ):
        HttpClient(address, connect_s=LONG, connections=1).call("GET", "/x", read_s=LONG, repeat=False)


# --- redirects --------------------------------------------------------------------------------------------------


def test_a_redirect_to_the_same_origin_is_followed():
    with FakeServer(world_size=6) as server:
        assert opened(server).call("GET", "/get_world_size/", read_s=LONG, repeat=False) == {"world_size": 6}
    assert [request.path for request in server.requests] == ["/get_world_size/", "/get_world_size"]


def test_a_redirect_carries_the_body():
    with FakeServer() as server:
        reply = opened(server).call("POST", CHAT + "/", ASK, read_s=LONG, repeat=False)
    assert reply["choices"][0]["token_ids"] == [11, 12, 2] and server.chats[0].body == ASK


def test_another_origin_is_never_contacted():
    with (
        FakeServer() as other,
        FakeServer(faults=(Fault("redirect", location=other.base_url + CHAT),)) as server,
        ends_with(ProtocolError, f"to another origin, {other.base_url}{CHAT}", within_s=LONG),
    ):
        chat(server)
    assert other.requests == [] and len(server.chats) == TRIES


def test_another_name_of_the_same_server_is_another_origin():
    with (
        FakeServer(faults=(Fault("redirect"),)) as server,
        ends_with(ProtocolError, f"to another origin, http://localhost:{server.port}", within_s=LONG),
    ):
        chat(server, repeat=False)
    assert len(server.requests) == 1


def test_a_second_redirect_is_not_followed():
    with FakeServer() as server:
        server.faults = (Fault("redirect", location=server.base_url + CHAT),)
        with ends_with(ProtocolError, f"answered 307 to {CHAT}", within_s=LONG):
            chat(server, repeat=False)
    assert len(server.chats) == 2

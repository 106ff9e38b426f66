"""HTTP servers on 127.0.0.1 that run inside a test, and a ledger of what was asked of them."""

import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

JSON = dict[str, Any]
CHAT = "/v1/chat/completions"
# How late a waiting thread may notice that it is to stop, in seconds.
SLICE = 0.02


@dataclass(eq=False)
class Request:
    """One request as it came; times are `time.monotonic()`."""

    method: str
    path: str
    query: dict[str, str]
    body: JSON
    host: str
    number: int  # how many came to this path before it
    connection: socket.socket
    start: float = 0.0  # its body had arrived
    end: float | None = None  # just before its answer's first byte, or when its client had left; None is in flight
    fault: str = ""
    written: int = 0  # bytes of a huge body that the client took
    while_paused: bool = False
    aborted: bool = False


class Exchange(BaseHTTPRequestHandler):
    """One connection. Each request on it goes to `owner.respond`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self.server.live.add(self.connection)

    def finish(self):
        self.server.live.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def do_GET(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.owner.respond(self)

    do_POST = do_GET

    def send(self, status: int, content: bytes, headers: dict[str, str]):
        """The whole answer in one write."""
        self.start_answer(status, {"Content-Length": str(len(content))} | headers)
        self._headers_buffer.append(content)
        self.flush_headers()

    def start_answer(self, status: int, headers: dict[str, str]):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self._headers_buffer.append(b"\r\n")

    def log_message(self, *_):
        """Nothing: the owner keeps the requests."""


class _Listener(ThreadingHTTPServer):
    request_queue_size = 256

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), OSError):  # a client that left is none
            super().handle_error(request, client_address)


class LoopbackServer:
    """Listens on 127.0.0.1 between `__enter__` and `__exit__`, which ends its connections and threads."""

    def __init__(self):
        self._listener = _Listener(("127.0.0.1", 0), Exchange)
        self._listener.owner = self
        self._listener.live = set()
        self.port = self._listener.server_address[1]
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.stopping = False

    def __enter__(self):
        threading.Thread(target=self._listener.serve_forever, args=(SLICE,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.stopping = True
        self._listener.shutdown()
        self._listener.server_close()
        limit = time.monotonic() + 5
        while self._listener.live and time.monotonic() < limit:
            for connection in list(self._listener.live):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            time.sleep(0.002)

    def respond(self, exchange: Exchange):
        raise NotImplementedError


def peer_left(connection: socket.socket) -> bool:
    """Whether the client has closed its end. A close on loopback is seen before whatever the client sends next."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


class Ledger:
    """Every request in order of arrival; completions in flight after each arrival and each end."""

    def __init__(self):
        self.changed = threading.Condition()
        self.requests: list[Request] = []
        self._counts: Counter[str] = Counter()
        self._events: list[tuple[float, Request, int]] = []

    def begin(self, request: Request):
        with self.changed:
            for waiting in self.in_flight():
                if peer_left(waiting.connection):  # else a client's retry would count twice
                    self.end(waiting)
            request.number = self._counts[request.path]
            self._counts[request.path] += 1
            request.start = time.monotonic()
            self.requests.append(request)
            if peer_left(request.connection):  # before this thread ran: never in flight
                request.end = request.start
            elif request.path == CHAT:
                self._events.append((request.start, request, 1))

    def end(self, request: Request):
        with self.changed:
            if request.end is None:
                request.end = time.monotonic()
                if request.path == CHAT:
                    self._events.append((request.end, request, -1))
                self.changed.notify_all()

    def in_flight(self) -> list[Request]:
        with self.changed:
            return [request for request in self.requests if request.path == CHAT and request.end is None]

    def timeline(self, where: Callable[[Request], bool]) -> Iterator[tuple[float, int]]:
        with self.changed:
            events = list(self._events)
        count = 0
        for moment, request, change in events:
            if where(request):
                count += change
                yield moment, count


def serve_by_hand(server: LoopbackServer):
    """Prints the address, alone on its line, and serves until Ctrl-C."""
    with server, suppress(KeyboardInterrupt):
        print(server.base_url, flush=True)
        threading.Event().wait()

"""A proxy before a real server that takes some routes on itself: it says 200 to them and does nothing.

By default these are the weight routes: every update seems to succeed and the server keeps its weights, which a client
must notice.
`with Proxy("http://127.0.0.1:8000") as proxy: proxy.base_url`, or by hand `python -m tests.proxy http://127.0.0.1:8000`.
"""

import argparse
import http.client
import json
import random
import threading
import time
from collections import Counter
from urllib.parse import urlsplit

from tests.loopback import Exchange, LoopbackServer, serve_by_hand

WEIGHT_ROUTES = frozenset(
    ("/init_weight_transfer_engine", "/start_weight_update", "/update_weights", "/finish_weight_update")
)
OWN = "/weight_info"
# Headers of one connection, which are not passed on.
HOP = frozenset(("connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "proxy-connection"))
REPLACED = frozenset(("content-length", "date", "server"))  # those that this end writes itself


class Proxy(LoopbackServer):
    """Passes everything on to `upstream` but `swallowed`; with `passing` (which a test may set) really everything."""

    def __init__(self, upstream: str, *, swallowed: frozenset[str] = WEIGHT_ROUTES, passing: bool = False):
        super().__init__()
        self.upstream = urlsplit(upstream)
        self.swallowed, self.passing = swallowed, passing
        self.weight_version: str | None = None  # the last that a swallowed finish named
        self._lock = threading.Lock()
        self._paths: list[tuple[str, bool]] = []

    @property
    def paths(self) -> list[tuple[str, bool]]:
        """(path, whether it was swallowed) of every request in order of arrival."""
        with self._lock:
            return list(self._paths)

    def respond(self, exchange: Exchange):
        path = urlsplit(exchange.path).path
        invented = path == OWN and self.weight_version is not None
        swallows = not self.passing and (invented or path in self.swallowed)
        with self._lock:
            self._paths.append((path, swallows))
        if not swallows:
            self._pass(exchange)
        elif path == OWN:
            say(exchange, 200, {"weight_version": self.weight_version})
        else:
            if path == "/finish_weight_update":
                self.weight_version = json.loads(exchange.body or b"{}").get("weight_version", self.weight_version)
            say(exchange, 200, {"message": f"{path}: done"})

    def _pass(self, exchange: Exchange):
        # The client's Host goes along, so that a redirect of the server names this proxy.
        upstream = http.client.HTTPConnection(self.upstream.hostname, self.upstream.port, timeout=600)
        try:
            upstream.putrequest(exchange.command, exchange.path, skip_host=True, skip_accept_encoding=True)
            for name, value in kept(exchange.headers.items()):
                upstream.putheader(name, value)
            upstream.endheaders(exchange.body)
            response = upstream.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            say(exchange, 502, {"error": f"{self.upstream.geturl()}: {error!r}"})
            return
        finally:
            upstream.close()
        headers = [pair for pair in kept(response.getheaders()) if pair[0].lower() not in REPLACED]
        exchange.send(response.status, content, dict(headers))


class Restarted(Proxy):
    """As if the server had been started again in the middle of a run: from one request on another answers.

    Args:
        upstream: answers at first.
        again: answers from then on.
        path, number: of the first request that goes there.
    """

    def __init__(self, upstream: str, again: str, *, path: str, number: int):
        super().__init__(upstream, passing=True)
        self.again, self.path, self.number = urlsplit(again), path, number

    def respond(self, exchange: Exchange):
        earlier = sum(path == self.path for path, _ in self.paths)
        if urlsplit(exchange.path).path == self.path and earlier + 1 >= self.number:
            self.upstream = self.again
        super().respond(exchange)


class Disturbed(Proxy):
    """Every so many replies one is dropped, late, sent twice, cut or no longer what the server said, at random.

    Args:
        every: replies, of which the last is disturbed; 0, which a test may set: none.
        seed: of the kinds.
        late_s: how late a late one is, seconds.
    """

    KINDS = ("dropped", "late", "twice", "cut", "corrupt")

    def __init__(self, upstream: str, *, every: int, seed: int, late_s: float = 0.5):
        super().__init__(upstream, passing=True)
        self.every, self.late_s = every, late_s
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self._replies = 0

    def respond(self, exchange: Exchange):
        super().respond(_Disturbing(exchange, self.next_kind()))

    def next_kind(self) -> str:
        with self._lock:
            self._replies += 1
            if not self.every or self._replies % self.every:
                return ""
            kind = self.random.choice(self.KINDS)
            self.done[kind] += 1
            return kind


class _Disturbing:
    """An exchange whose reply does not come as it was sent."""

    def __init__(self, exchange: Exchange, kind: str):
        self.exchange, self.kind = exchange, kind

    def __getattr__(self, name: str):
        return getattr(self.exchange, name)

    def send(self, status: int, content: bytes, headers: dict[str, str]):
        send, half = self.exchange.send, len(content) // 2
        if self.kind in ("dropped", "cut"):
            self.exchange.close_connection = True
        if self.kind == "dropped":
            return
        if self.kind == "late":
            time.sleep(self.exchange.server.owner.late_s)
        if self.kind == "cut":
            headers = headers | {"Content-Length": str(max(1, len(content)))}
            content = content[:half]
        if self.kind == "corrupt" and content:  # a byte that no JSON has: a digit for a digit nobody could notice
            content = content[:half] + b"\xff" + content[half + 1 :]
        for _ in range(2 if self.kind == "twice" else 1):
            send(status, content, headers)


def kept(headers) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers if name.lower() not in HOP]


def say(exchange: Exchange, status: int, reply: dict[str, str | None]):
    exchange.send(status, json.dumps(reply).encode(), {"Content-Type": "application/json"})


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.proxy", description="Swallows a server's weight routes.")
    parser.add_argument("upstream", help="address of the real server, such as http://127.0.0.1:8000")
    serve_by_hand(Proxy(parser.parse_args().upstream))


if __name__ == "__main__":
    main()

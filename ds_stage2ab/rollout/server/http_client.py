"""HTTP with bounds: every call has a time-out for the connection and one for the answer, and a largest answer.

What is safe to repeat is repeated a few times with growing, jittered pauses; a server that says when to come back is
obeyed. Redirects are followed once, and only to the same origin. Proxies of the environment are not used: rollouts
and weights go to the address in the config.
"""

import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPResponse
from urllib3.exceptions import HTTPError

CHUNK_BYTES = 2**16
MOST_BYTES = 2**26
"""Of an answer. The largest honest one, ids and log-probabilities of a long answer, takes a few MB."""
TRIES = 3
FIRST_PAUSE_S = 0.2
"""Before the second try; doubled for each further one, and sampled from its upper half."""
LONGEST_PAUSE_S = 10.0
"""However long a server asks us to stay away."""
BUSY = (429, 503)
TOLD = 300  # characters of a refusal that a message quotes
MOST_KEY_BYTES = 4096  # of a key that such an answer may repeat: one that is cut would not be found


Headers = dict[str, str] | None


class ServerUnavailable(Exception):
    """The server did not do its part: no connection, no answer in time, a broken one, or an error of its own."""


class ReadTimeout(ServerUnavailable):
    """It did not answer in time. Asking again would wait as long again."""


class ProtocolError(ServerUnavailable):
    """The answer is none of vLLM's: too large, no JSON, of another form, or a redirect to another origin."""


class ClientError(Exception):
    """The server understood, and says that the request is wrong.

    Args:
        why: in words.
        status: 4xx.
    """

    def __init__(self, why: str, status: int) -> None:
        super().__init__(why)
        self.status = status


class HttpClient:
    """One server.

    Args:
        base_url: scheme, host and port.
        connect_s: longest wait for a connection.
        connections: kept open at most.
        api_key: sent as a bearer token; no message of this client holds it.
    """

    def __init__(self, base_url: str, *, connect_s: float, connections: int, api_key: str | None = None) -> None:
        self.base_url = base_url.rstrip("/")
        self.connect_s = connect_s
        self.session = requests.Session()
        self.session.trust_env = False
        self.api_key = api_key
        if api_key is not None:
            self.session.headers["Authorization"] = f"Bearer {api_key}"
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, _Adapter(pool_maxsize=connections))

    def call(
        self, method: str, path: str, body: Any = None, *, read_s: float, repeat: bool, headers: Headers = None
    ) -> Any:
        """One request; returns the answer's JSON, None if it has no body.

        Args:
            read_s: longest wait for the whole answer of one try, seconds.
            repeat: whether the request may be sent again when it was not answered.

        Raises:
            ServerUnavailable: also the last try failed.
            ClientError: the request is wrong.
        """
        pauses = [FIRST_PAUSE_S * 2**n for n in range(TRIES - 1)] if repeat else []
        for pause in pauses:
            try:
                return self._once(method, path, body, read_s, headers)
            except ReadTimeout:
                raise
            except _ComeBack as error:
                time.sleep(min(error.seconds, LONGEST_PAUSE_S) or _jittered(pause))
            except ServerUnavailable:
                time.sleep(_jittered(pause))
        return self._once(method, path, body, read_s, headers)

    def _once(self, method: str, path: str, body: Any, read_s: float, sent: Headers) -> Any:
        url = f"{self.base_url}{path}"
        status, headers, content = self._fetch(method, url, body, read_s, sent)
        if status in (301, 302, 307, 308):
            status, headers, content = self._fetch(method, self._same_origin(url, headers), body, read_s, sent)
        if status in BUSY:
            raise _ComeBack(f"answered {status} to {path}", _seconds(headers.get("Retry-After")))
        if 400 <= status < 500:
            raise ClientError(f"refused {path} with {status}: {self._told(content)}", status)
        if status != 200:
            kind = ProtocolError if 300 <= status < 400 else ServerUnavailable
            raise kind(f"answered {status} to {path}: {self._told(content)}")
        return self._json(content, path)

    def _json(self, content: bytes, path: str) -> Any:
        if not content:
            return None
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"the answer to {path} is no JSON: {self._told(content)}") from error

    def _told(self, content: bytes) -> str:
        """The start of an answer, for a message."""
        whole = content[: TOLD + MOST_KEY_BYTES].decode("utf-8", "replace")
        if self.api_key is not None:
            whole = whole.replace(self.api_key, "***")
        return " ".join(whole[:TOLD].split()) or "(nothing)"

    def _same_origin(self, url: str, headers: Any) -> str:
        target = urljoin(url, headers.get("Location") or "")
        if urlsplit(target)[:2] != urlsplit(url)[:2]:
            raise ProtocolError(f"sends us from {urlsplit(url).path} to another origin, {target[:TOLD]}")
        return target

    def _fetch(
        self, method: str, url: str, body: Any, read_s: float, headers: Headers
    ) -> tuple[int, Any, bytes]:
        deadline = time.monotonic() + read_s
        path = urlsplit(url).path
        late = f"no answer to {path} within {read_s:g} s"
        try:
            with self.session.request(
                method, url, json=body, headers=headers,
                timeout=(self.connect_s, read_s), stream=True, allow_redirects=False,
            ) as reply:
                content = _content(reply, path, deadline)
        except requests.ConnectTimeout as error:
            raise ReadTimeout(f"no connection within {self.connect_s:g} s") from error
        except (requests.RequestException, HTTPError) as error:
            if isinstance(_cause(error), TimeoutError) or time.monotonic() > deadline:
                raise ReadTimeout(late) from error
            raise ServerUnavailable(f"the connection failed in {path}: {_told_by(_cause(error))}") from error
        if time.monotonic() > deadline:  # where an answer was cut off may look like its end
            raise ReadTimeout(late)
        return reply.status_code, reply.headers, content


class _ComeBack(ServerUnavailable):
    def __init__(self, why: str, seconds: float) -> None:
        super().__init__(why)
        self.seconds = seconds


class _CutHeaders:
    """Mixed into urllib3's connections, whose time-out bounds each receipt: head lines may drip for ever."""

    def getresponse(self) -> HTTPResponse:
        with _cut(partial(self.sock.shutdown, socket.SHUT_RDWR), self.timeout):
            return super().getresponse()


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *arguments: Any, **settings: Any) -> None:
        super().init_poolmanager(*arguments, **settings)
        self.poolmanager.pool_classes_by_scheme = {
            scheme: type(pool.__name__, (pool,), {"ConnectionCls": type("Cut", (_CutHeaders, pool.ConnectionCls), {})})
            for scheme, pool in self.poolmanager.pool_classes_by_scheme.items()
        }


@contextmanager
def _cut(shutdown: Callable[[], None], after_s: float) -> Iterator[None]:
    """Shuts the socket down at the deadline, so that a blocked read fails."""

    def end() -> None:
        with suppress(OSError, RuntimeError):  # the last byte was read in this moment
            shutdown()

    timer = threading.Timer(max(0.0, after_s), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _content(reply: requests.Response, path: str, deadline: float) -> bytes:
    content = bytearray()
    with _cut(reply.raw.shutdown, deadline - time.monotonic()):
        # One receipt at a time: a server that sends byte by byte must not fill memory unseen.
        while chunk := reply.raw.read1(CHUNK_BYTES, decode_content=True):
            content += chunk
            if len(content) > MOST_BYTES:
                raise ProtocolError(f"the answer to {path} is larger than {MOST_BYTES // 2**20} MiB")
    return bytes(content)


def _cause(error: BaseException) -> BaseException:
    """The innermost reason: the outer ones repeat the address."""
    while error.__cause__ or error.__context__ or (error.args and isinstance(error.args[0], BaseException)):
        error = error.__cause__ or error.__context__ or error.args[0]
    return error


def _told_by(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _seconds(retry_after: str | None) -> float:
    """`Retry-After` in seconds; 0 if there is none, or a date."""
    return float(retry_after) if retry_after and retry_after.isdigit() else 0.0


def _jittered(seconds: float, draw: Callable[[], float] = random.random) -> float:
    return seconds * (1 + draw()) / 2

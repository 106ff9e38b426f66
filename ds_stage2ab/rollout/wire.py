"""HTTP with bounds: every call has a time-out for the connection and one for the answer, and a largest answer.

What is safe to repeat is repeated a few times with growing, jittered pauses; a server that says when to come back is
obeyed. Redirects are followed once, and only to the same origin. Proxies of the environment are not used: rollouts
and weights go to the address in the config.
"""

import json
import random
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError

CHUNK_BYTES = 2**16
MOST_BYTES = 2**26
"""Of an answer. The largest honest one, ids and log-probabilities of a long answer, takes a few MB."""
TRIES = 3
FIRST_PAUSE_S = 0.2
"""Before the second try; doubled for each further one, and drawn from its upper half."""
LONGEST_PAUSE_S = 10.0
"""However long a server asks us to stay away."""
BUSY = (429, 503)
TOLD = 300  # characters of a refusal that a message quotes


class Unanswered(Exception):
    """The server did not do its part: no connection, no answer in time, a broken one, or an error of its own."""


class Silent(Unanswered):
    """It did not answer in time. Asking again would wait as long again."""


class Refused(Exception):
    """The server understood, and says that the request is wrong (4xx)."""


class Wire:
    """One server.

    Args:
        base_url: scheme, host and port.
        connect_s: longest wait for a connection.
        connections: kept open at most.
    """

    def __init__(self, base_url: str, *, connect_s: float, connections: int) -> None:
        self.base_url = base_url.rstrip("/")
        self.connect_s = connect_s
        self.session = requests.Session()
        self.session.trust_env = False
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(pool_maxsize=connections))

    def call(self, method: str, path: str, body: Any = None, *, read_s: float, repeat: bool) -> Any:
        """One request; returns the answer's JSON, None if it has no body.

        Args:
            read_s: longest wait for the whole answer, seconds.
            repeat: whether the request may be sent again when it was not answered.

        Raises:
            Unanswered: also the last try failed.
            Refused: the request is wrong.
        """
        pauses = [FIRST_PAUSE_S * 2**n for n in range(TRIES - 1)] if repeat else []
        for pause in pauses:
            try:
                return self._once(method, path, body, read_s)
            except Silent:
                raise
            except _ComeBack as error:
                time.sleep(min(error.seconds, LONGEST_PAUSE_S) or _jittered(pause))
            except Unanswered:
                time.sleep(_jittered(pause))
        return self._once(method, path, body, read_s)

    def _once(self, method: str, path: str, body: Any, read_s: float) -> Any:
        url = f"{self.base_url}{path}"
        status, headers, content = self._fetch(method, url, body, read_s)
        if status in (301, 302, 307, 308):
            status, headers, content = self._fetch(method, self._same_origin(url, headers), body, read_s)
        if status in BUSY:
            raise _ComeBack(f"answered {status} to {path}", _seconds(headers.get("Retry-After")))
        if 400 <= status < 500:
            raise Refused(f"refused {path} with {status}: {_told(content)}")
        if status != 200:
            raise Unanswered(f"answered {status} to {path}: {_told(content)}")
        return _json(content, path)

    def _same_origin(self, url: str, headers: Any) -> str:
        target = urljoin(url, headers.get("Location") or "")
        if urlsplit(target)[:2] != urlsplit(url)[:2]:
            raise Unanswered(f"sends us from {urlsplit(url).path} to another origin, {target[:TOLD]}")
        return target

    def _fetch(self, method: str, url: str, body: Any, read_s: float) -> tuple[int, Any, bytes]:
        deadline = time.monotonic() + read_s
        path = urlsplit(url).path
        try:
            with self.session.request(
                method, url, json=body, timeout=(self.connect_s, read_s), stream=True, allow_redirects=False
            ) as reply:
                return reply.status_code, reply.headers, _content(reply, path, deadline)
        except requests.ConnectTimeout as error:
            raise Silent(f"no connection within {self.connect_s:g} s") from error
        except (requests.RequestException, HTTPError) as error:
            if isinstance(_cause(error), TimeoutError):
                raise Silent(f"no answer to {path} within {read_s:g} s") from error
            raise Unanswered(f"the connection failed in {path}: {_told_by(_cause(error))}") from error


class _ComeBack(Unanswered):
    def __init__(self, why: str, seconds: float) -> None:
        super().__init__(why)
        self.seconds = seconds


def _content(reply: requests.Response, path: str, deadline: float) -> bytes:
    content = bytearray()
    # One receipt at a time: to wait for a full chunk would be to wait for ever on a server that sends byte by byte.
    while chunk := reply.raw.read1(CHUNK_BYTES, decode_content=True):
        content += chunk
        if len(content) > MOST_BYTES:
            raise Unanswered(f"the answer to {path} is larger than {MOST_BYTES // 2**20} MiB")
        if time.monotonic() > deadline:
            raise Silent(f"the answer to {path} was not complete in time")
    return bytes(content)


def _json(content: bytes, path: str) -> Any:
    if not content:
        return None
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Unanswered(f"the answer to {path} is no JSON: {_told(content)}") from error


def _told(content: bytes) -> str:
    return " ".join(content[:TOLD].decode("utf-8", "replace").split()) or "(nothing)"


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

"""What a fake server may do wrong, one dataclass: `tests/fakes.py` does it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.loopback import CHAT, JSON, Exchange, Request

BLOCK = 1 << 16  # bytes of a huge body that exist at once
DRIP_S = 0.05  # between two bytes
ANY_REPLY = ("hang", "half", "drip", "400", "404", "429", "500", "503", "huge", "redirect")
CHAT_REPLY = ("count", "vocabulary", "prompt", "no_ids", "no_logprobs", "empty")


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and with which requests to `path`."""

    kind: str
    path: str = CHAT
    # Numbers of requests to this path, from 0 in order of arrival, or a predicate of (number, body); None is all.
    when: set[int] | range | Callable[[int, JSON], bool] | None = None
    retry_after: str = "1"  # of a 429 and a 503: seconds, or a date
    size: int = 10**9  # of `huge`, bytes
    chunked: bool = False  # a huge body that does not tell its length before
    location: str = ""  # of `redirect`; empty is this server under another name, which is another origin

    def __post_init__(self):
        chats = CHAT_REPLY if self.path == CHAT else ()
        assert self.kind in ANY_REPLY + chats, f"{self.path} has no fault {self.kind!r}"

    def hits(self, number: int, body: JSON) -> bool:
        if callable(self.when):
            return self.when(number, body)
        return self.when is None or number in self.when


def spoil(reply: JSON, fault: Fault):
    """Makes a good completion one that no client may take."""
    choice = reply["choices"][0]
    if fault.kind == "count":
        reply["choices"] = [choice | {"index": index} for index in range(2)]
    elif fault.kind == "vocabulary":
        choice["token_ids"] = [*(choice["token_ids"] or [])[:-1], 2**31]
    elif fault.kind == "prompt":
        ids = reply["prompt_token_ids"] or [0]
        reply["prompt_token_ids"] = [*ids[:-1], ids[-1] + 1]
    elif fault.kind == "no_ids":
        choice["token_ids"] = reply["prompt_token_ids"] = None
    elif fault.kind == "no_logprobs":
        choice["logprobs"] = None
    else:
        choice |= {"token_ids": [], "finish_reason": "length", "stop_reason": None}


def stream_huge(exchange: Exchange, request: Request, fault: Fault):
    """One JSON string without end, made a block at a time."""
    length = {"Transfer-Encoding": "chunked"} if fault.chunked else {"Content-Length": str(fault.size)}
    exchange.start_answer(200, {"Content-Type": "application/json", "Connection": "close"} | length)
    exchange.flush_headers()
    block = b'{"id": "' + b"a" * (BLOCK - 8)
    while request.written < fault.size:
        part = block[: fault.size - request.written]
        exchange.wfile.write(b"%x\r\n%b\r\n" % (len(part), part) if fault.chunked else part)
        request.written += len(part)
        block = b"a" * BLOCK
    if fault.chunked:
        exchange.wfile.write(b"0\r\n\r\n")


def drip(exchange: Exchange, stopping: Callable[[], bool]):
    """The head of an answer, a byte at a time and without end."""
    for byte in b"HTTP/1.1 200 OK\r\n":
        exchange.wfile.write(bytes([byte]))
    while not stopping():
        exchange.wfile.write(b"X")
        time.sleep(DRIP_S)

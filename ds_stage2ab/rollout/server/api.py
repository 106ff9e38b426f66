"""The routes of a vLLM server that a run needs, as vLLM 0.32 has them.

Paths are known here, and those of the first look at a server in `handshake.py`, before any other call.
"""

import base64
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from ds_stage2ab.config.servers import MODEL_NAME
from ds_stage2ab.errors import ServerFault
from ds_stage2ab.rollout.server.http_client import (
    LONGEST_PAUSE_S,
    TRIES,
    ClientError,
    HttpClient,
    ReadTimeout,
    ServerUnavailable,
)

NEEDED_ROUTES = (
    "/v1/chat/completions",
    "/v1/chat/completions/render",
    "/v1/models",
    "/tokenize",
    "/server_info",
    "/get_world_size",
    "/weight_info",
    "/is_paused",
    "/pause",
    "/resume",
    "/reset_prefix_cache",
    "/reset_mm_cache",
    "/reset_encoder_cache",
    "/init_weight_transfer_engine",
    "/start_weight_update",
    "/update_weights",
    "/finish_weight_update",
)
REPLICA = "X-data-parallel-rank"
CACHE_TRIES, CACHE_PAUSE_S = 10, 0.2
"""A cache cannot be reset while a request that has just been aborted still holds a block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """A chat request as the server would pass it to its engine."""

    image: bytes
    # the request's one image after processing, as raw bytes that contain its pixel values
    stop_ids: tuple[int, ...]
    # tokens that end an answer: the request's own, and what the server adds
    ignores_eos: bool
    # whether the checkpoint's own end tokens are ignored


class ServerApi:
    """One server; every call is bounded.

    Args:
        base_url: scheme, host and port.
        timeout_s: of a connection, and of a call that generates nothing.
        connections: most requests at once.
        api_key: of the server, if it asks for one.
    """

    def __init__(self, base_url: str, *, timeout_s: float, connections: int, api_key: str | None = None) -> None:
        self.client = HttpClient(base_url, connect_s=timeout_s, connections=connections, api_key=api_key)
        self.url = self.client.base_url
        self.timeout_s = timeout_s

    def longest_s(self, read_s: float) -> float:
        """Longest time of a call with the read time-out `read_s`, with its tries and the pauses between them."""
        return TRIES * (self.timeout_s + read_s + LONGEST_PAUSE_S)

    def get(self, path: str) -> Any:
        return self.client.call("GET", path, read_s=self.timeout_s, repeat=True)

    def knock(self, *, read_s: float) -> None:
        """Whether it answers at all."""
        self.client.call("GET", "/health", read_s=read_s, repeat=False)

    def chat(self, body: dict[str, Any], *, read_s: float, replica: int | None = None) -> Any:
        """One completion; it is seeded and has no side effects, so it may be repeated.

        Args:
            read_s: read time-out.
            replica: which of the server's generates it; None: the server chooses.
        """
        headers = None if replica is None else {REPLICA: str(replica)}
        return self.client.call("POST", "/v1/chat/completions", body, read_s=read_s, repeat=True, headers=headers)

    def render(self, body: dict[str, Any], *, read_s: float) -> Rendered:
        """A chat request as it reaches the engine; generates nothing."""
        reply = self.client.call("POST", "/v1/chat/completions/render", body, read_s=read_s, repeat=True)
        (image,) = reply["features"]["kwargs_data"]["image"]
        sampling = reply["sampling_params"]  # vLLM leaves out its defaults
        return Rendered(
            image=base64.b64decode(image, validate=True),
            stop_ids=tuple(sampling.get("stop_token_ids") or ()),
            ignores_eos=bool(sampling.get("ignore_eos")),
        )

    def tokenize(self, text: str) -> tuple[int, ...]:
        """The ids of a text, without special tokens."""
        body = {"model": MODEL_NAME, "prompt": text, "add_special_tokens": False}
        return tuple(int(token) for token in self._post("/tokenize", body, repeat=True)["tokens"])

    def weight_version(self) -> str:
        """The version that the last complete update set."""
        return str(self.get("/weight_info")["weight_version"])

    def world_size(self) -> int:
        """Devices of the server, all replicas together."""
        return int(self.get("/get_world_size/")["world_size"])

    def replica_size(self) -> int:
        """Devices of one replica."""
        return int(self.get("/get_world_size?include_dp=false")["world_size"])

    def pause(self) -> None:
        """Let no request in, and abort what is running: nothing of this run is."""
        self._post("/pause?mode=abort", repeat=True)

    def resume(self) -> None:
        self._post("/resume", repeat=True)

    def clear_caches(self) -> None:
        """Empty all caches of the current weights.

        Raises:
            ServerUnavailable: the prefix cache stays in use.
        """
        for _ in range(CACHE_TRIES):
            if self._post("/reset_prefix_cache", repeat=True)["success"]:
                break
            time.sleep(CACHE_PAUSE_S)
        else:
            raise ServerUnavailable("its prefix cache cannot be emptied: somebody else's requests are running")
        self._post("/reset_mm_cache", repeat=True)
        self._post("/reset_encoder_cache", repeat=True)

    def join_group(self, invitation: dict[str, Any], *, timeout_s: float) -> None:
        """Let the server's workers join the learner's group; returns when they have."""
        self._post("/init_weight_transfer_engine", {"init_info": invitation}, read_s=timeout_s)

    def start_update(self, *, timeout_s: float) -> None:
        """Begin an update; one that an earlier learner left open is closed first, as all weights are sent again."""
        try:
            self._post("/start_weight_update", read_s=timeout_s)
        except ReadTimeout:
            raise
        except ServerUnavailable as error:
            try:
                self._post("/finish_weight_update", {}, read_s=timeout_s)
            except (ServerUnavailable, ClientError):  # none was open: report the first error
                raise error from None
            self._post("/start_weight_update", read_s=timeout_s)

    def update(self, names: list[str], dtypes: list[str], shapes: list[list[int]], *, timeout_s: float) -> None:
        """Let the workers receive one bucket; returns when they have loaded it."""
        info = {"names": names, "dtype_names": dtypes, "shapes": shapes}
        self._post("/update_weights", {"update_info": info}, read_s=timeout_s)

    def abandon_update(self) -> None:
        """Close an update that will not be finished: the server would crash if it ran the half-updated model.

        An invalid bucket closes it; where none is open the server only refuses the bucket.
        """
        with suppress(ServerUnavailable, ClientError):  # it is meant to be refused
            self._post("/update_weights", {"update_info": {}})

    def finish_update(self, version: str, *, timeout_s: float) -> None:
        self._post("/finish_weight_update", {"weight_version": version}, read_s=timeout_s)

    def _post(self, path: str, body: Any = None, *, read_s: float | None = None, repeat: bool = False) -> Any:
        return self.client.call("POST", path, body, read_s=read_s or self.timeout_s, repeat=repeat)


@contextmanager
def as_server_fault(url: str, doing: str, *, fix: str = "") -> Iterator[None]:
    """Converts the failure of a call to the fault that ends the run.

    Raises:
        ServerFault: names the server, what was called, and what to do.
    """
    try:
        yield
    except (ServerUnavailable, ClientError) as error:
        raise ServerFault(
            f"{doing}: the server {error}" if isinstance(error, ClientError) else f"{doing}: {error}",
            where=url,
            fix=fix or "look at the server's own log; when it is up again, start the run again",
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise ServerFault(
            f"{doing}: the server's answer has another form ({type(error).__name__}: {error})",
            where=url,
            fix="use a vLLM of the supported range",
        ) from error

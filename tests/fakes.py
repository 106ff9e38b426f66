"""A server that speaks vLLM's routes and generates nothing: answers, durations and faults are the test's own.

`with FakeServer(...) as server: server.base_url`, or a process of its own, `python -m tests.fakes`. It keeps every
request, and the number of completions in flight at every moment.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import parse_qsl, urlsplit

from tests.fake_faults import ANY_REPLY, CHAT_REPLY, Fault, drip, spoil, stream_huge
from tests.fake_replies import completion, refused, rendered
from tests.loopback import CHAT, JSON, SLICE, Exchange, Ledger, LoopbackServer, Request, peer_left, serve_by_hand

Reply = tuple[int, JSON | None]  # status, body; None is an empty one


def first_answer(body: JSON) -> tuple[list[int], str]:
    """Two ids and the stop id."""
    stops = body.get("stop_token_ids") or [2]
    return [11, 12, stops[0]], "stop"


@dataclass
class State:
    """What the routes tell and change; a test may set it too."""

    paused: str = ""  # the mode, empty when running
    weight_version: str = "default"
    keeps_version: bool = False  # whatever an update says
    updating: bool = False
    caches_reset: bool = True  # what /reset_prefix_cache says
    image: bytes = b""  # what the render route tells of any image
    removed: set[str] = field(default_factory=set)  # paths that this server answers with 404


@dataclass(frozen=True)
class Settings:
    """What /server_info tells of how the server was started."""

    dtype: str = "torch.float32"
    generation_config: str = "vllm"
    logprobs_mode: str = "raw_logprobs"
    max_num_seqs: int = 4
    weight_transfer: str | None = "ds_stage2ab_gloo"  # the backend; None is a server without
    speculative: JSON | None = None  # --speculative-config
    override: JSON = field(default_factory=dict)  # --override-generation-config
    added_stop_ids: tuple[int, ...] = ()  # by the server, to those of every request
    ignores_eos: bool = True  # when a request says so


class Workers(Protocol):
    """What a server's workers do in a transfer of weights; both raise RuntimeError when it fails."""

    def join(self, invitation: JSON) -> None: ...

    def take(self, bucket: JSON) -> None: ...


class FakeServer(LoopbackServer):
    """`answer(request body)` gives (token ids, finish reason), `seconds(request body)` how long that takes."""

    def __init__(
        self,
        *,
        world_size: int = 1,
        tensor_parallel_size: int = 1,
        answer: Callable[[JSON], tuple[list[int], str]] = first_answer,
        prompt_ids: Callable[[JSON], list[int]] = lambda body: [1, 2, 3],
        logprobs: Callable[[JSON, list[int]], list[float]] = lambda body, ids: [-0.5] * len(ids),
        seconds: Callable[[JSON], float] = lambda body: 0.0,
        faults: tuple[Fault, ...] = (),
        knows_include_dp: bool = True,
        version: str = "0.32.0",
        model: str = "ds_stage2ab",
        max_model_len: int = 4096,
        settings: Settings = Settings(),
        tokenize: Callable[[str], list[int]] = lambda text: list(text.encode()),
        workers: Workers | None = None,
    ):
        super().__init__()
        assert world_size % tensor_parallel_size == 0
        self.world_size, self.tensor_parallel_size = world_size, tensor_parallel_size
        self.answer, self.prompt_ids, self.logprobs, self.seconds = answer, prompt_ids, logprobs, seconds
        self.faults = faults
        self.knows_include_dp = knows_include_dp
        self.version, self.model, self.max_model_len = version, model, max_model_len
        self.settings = settings
        self.tokenize, self.workers = tokenize, workers
        self.state = State()
        self.ledger = Ledger()

    @property
    def requests(self) -> list[Request]:
        return list(self.ledger.requests)

    @property
    def chats(self) -> list[Request]:
        return [request for request in self.requests if request.path == CHAT]

    @property
    def most_in_flight(self) -> int:
        return max((count for _, count in self.timeline()), default=0)

    def timeline(self, where: Callable[[Request], bool] = lambda request: True) -> list[tuple[float, int]]:
        """(moment, completions in flight from then on); `where` narrows it to those of one rank, for example."""
        return list(self.ledger.timeline(where))

    # --- one request --------------------------------------------------------------------------------------------

    def respond(self, exchange: Exchange):
        url = urlsplit(exchange.path)
        body = json.loads(exchange.body or b"{}")
        request = Request(
            method=exchange.command,
            path=url.path,
            query=dict(parse_qsl(url.query)),
            body=body,
            host=exchange.headers.get("Host", ""),
            number=0,
            connection=exchange.connection,
            while_paused=self.state.paused != "",
        )
        self.ledger.begin(request)
        try:
            self._answer(exchange, request, url.query)
        finally:
            self.ledger.end(request)

    def _answer(self, exchange: Exchange, request: Request, query: str):
        faults = (fault for fault in self.faults if fault.path == request.path)
        fault = next((fault for fault in faults if fault.hits(request.number, request.body)), None)
        request.fault = fault.kind if fault else ""
        if fault and fault.kind in ANY_REPLY and fault.kind != "half":
            return self._break(exchange, request, fault)
        known = {path for _, path in ROUTES} - self.state.removed
        plain = request.path.rstrip("/")
        if plain != request.path and plain in known:
            location = f"http://{request.host}{plain}" + (f"?{query}" if query else "")
            return self._send(exchange, request, 307, b"", {"Location": location})
        if request.path not in known:
            status, reply = refused(404, "Not Found")
        elif (request.method, request.path) not in ROUTES:
            status, reply = refused(405, "Method Not Allowed")
        elif request.path == CHAT:
            outcome = self._complete(exchange, request, fault)
            if outcome is None:
                exchange.close_connection = True
                return None
            status, reply = outcome
        else:
            status, reply = ROUTES[request.method, request.path](self, request)
        content = b"" if reply is None else json.dumps(reply).encode()
        if fault and fault.kind == "half":
            headers = {"Content-Length": str(max(1, len(content))), "Connection": "close"}
            return self._send(exchange, request, status, content[: len(content) // 2], headers)
        return self._send(exchange, request, status, content, {"Content-Type": "application/json"})

    def _send(self, exchange: Exchange, request: Request, status: int, content: bytes, headers: dict[str, str]):
        # Ended first: the client may send its next request before this thread runs again.
        self.ledger.end(request)
        exchange.send(status, content, headers)

    def _break(self, exchange: Exchange, request: Request, fault: Fault):
        if fault.kind == "hang":
            while not (self.stopping or peer_left(exchange.connection)):
                time.sleep(SLICE)
            exchange.close_connection = True
        elif fault.kind == "drip":
            drip(exchange, lambda: self.stopping)
            exchange.close_connection = True
        elif fault.kind == "huge":
            self.ledger.end(request)
            stream_huge(exchange, request, fault)
        elif fault.kind == "redirect":
            location = fault.location or f"http://localhost:{self.port}{request.path}"
            self._send(exchange, request, 307, b"", {"Location": location})
        else:
            _, reply = refused(int(fault.kind), "a fault of the test")
            headers = {"Retry-After": fault.retry_after} if fault.kind in ("429", "503") else {}
            self._send(exchange, request, int(fault.kind), json.dumps(reply).encode(), headers)

    # --- completions --------------------------------------------------------------------------------------------

    def _complete(self, exchange: Exchange, request: Request, fault: Fault | None) -> Reply | None:
        body = request.body
        if "messages" not in body:
            return refused(400, "messages: Field required")
        ids, finish = self.answer(body)
        if not self._wait(exchange, request, time.monotonic() + self.seconds(body)):
            return None
        if request.aborted:
            ids, finish = [], "abort"
        reply = completion(
            body, ids, finish, prompt_ids=self.prompt_ids(body), logprobs=self.logprobs, model=self.model
        )
        if fault and fault.kind in CHAT_REPLY:
            spoil(reply, fault)
        return 200, reply

    def _wait(self, exchange: Exchange, request: Request, until: float) -> bool:
        """False when the client left. A pause holds back what came after it."""
        with self.ledger.changed:
            while not request.aborted:
                held = self.state.paused != "" and request.while_paused
                left = until - time.monotonic()
                if left <= 0 and not held:
                    return True
                if self.stopping or peer_left(exchange.connection):
                    return False
                self.ledger.changed.wait(SLICE if held else min(SLICE, left))
        return True

    # --- control routes -----------------------------------------------------------------------------------------

    def _world_size(self, request: Request) -> Reply:
        without = self.knows_include_dp and request.query.get("include_dp", "true").lower() in ("false", "0")
        return 200, {"world_size": self.tensor_parallel_size if without else self.world_size}

    def _pause(self, request: Request) -> Reply:
        mode = request.query.get("mode", "abort")
        if mode != "abort":
            return refused(400, f"mode {mode!r}: no client of this fake asks for another than 'abort'")
        with self.ledger.changed:
            self.state.paused = mode
            for chat in self.ledger.in_flight():
                chat.aborted = True
            self.ledger.changed.notify_all()
        return 200, {"status": "paused"}

    def _resume(self, request: Request) -> Reply:
        with self.ledger.changed:
            self.state.paused = ""
            self.ledger.changed.notify_all()
        return 200, {"status": "resumed"}

    def _init_transfer(self, request: Request) -> Reply:
        if not isinstance(request.body.get("init_info"), dict):
            return refused(400, "init_info: Field required")
        return self._by_workers(lambda workers: workers.join(request.body["init_info"]), "Weight transfer initialized")

    def _start_update(self, request: Request) -> Reply:
        if self.state.updating:
            return refused(500, "start_weight_update called while a weight update is already active.")
        self.state.updating = True
        return 200, {"message": "Weight update started"}

    def _update(self, request: Request) -> Reply:
        if not isinstance(request.body.get("update_info"), dict | list):
            return refused(400, "update_info: Field required")
        if not self.state.updating:
            return refused(500, "start_weight_update must be called before update_weights.")
        return self._by_workers(lambda workers: workers.take(request.body["update_info"]), "Weights updated")

    def _by_workers(self, act: Callable[[Workers], None], done: str) -> Reply:
        if self.workers is not None:
            try:
                act(self.workers)
            except RuntimeError as error:
                return refused(500, str(error))
        return 200, {"message": done}

    def _finish_update(self, request: Request) -> Reply:
        if not self.state.updating:
            return refused(500, "finish_weight_update called without a matching start_weight_update.")
        self.state.updating = False
        version = request.body.get("weight_version")
        if version is not None and not self.state.keeps_version:
            self.state.weight_version = version
        return 200, {"message": "Weight update finished"}

    def _models(self, request: Request) -> Reply:
        card = {"id": self.model, "object": "model", "created": 0, "owned_by": "vllm", "root": self.model}
        card |= {"parent": None, "max_model_len": self.max_model_len, "permission": []}
        return 200, {"object": "list", "data": [card]}

    def _openapi(self, request: Request) -> Reply:
        paths: JSON = {}
        for method, path in ROUTES:
            if path not in self.state.removed | {"/openapi.json"}:
                paths.setdefault(path, {})[method.lower()] = {"responses": {"200": {}}}
        if self.knows_include_dp and "/get_world_size" in paths:
            paths["/get_world_size"]["get"]["parameters"] = [{"name": "include_dp", "in": "query", "required": False}]
        info = {"title": "FastAPI", "version": "0.1.0"}
        return 200, {"openapi": "3.1.0", "info": info, "paths": paths}

    def _server_info(self, request: Request) -> Reply:
        parallel = {"tensor_parallel_size": self.tensor_parallel_size, "world_size": self.tensor_parallel_size}
        parallel["data_parallel_size"] = self.world_size // self.tensor_parallel_size
        told = self.settings
        model = {"model": self.model, "served_model_name": self.model, "max_model_len": self.max_model_len}
        model |= {"dtype": told.dtype, "generation_config": told.generation_config}
        model |= {"override_generation_config": told.override}
        config = {"model_config": model | {"logprobs_mode": told.logprobs_mode}, "parallel_config": parallel}
        config["scheduler_config"] = {"max_num_seqs": told.max_num_seqs}
        config["weight_transfer_config"] = told.weight_transfer and {"backend": told.weight_transfer}
        config["speculative_config"] = told.speculative
        as_json = request.query.get("config_format") == "json"
        return 200, {"vllm_config": config if as_json else str(config), "vllm_env": {}, "system_env": {}}

    def _render(self, request: Request) -> Reply:
        told = self.settings
        return 200, rendered(request.body, self.state.image, told.added_stop_ids, ignores_eos=told.ignores_eos)

    def _tokenize(self, request: Request) -> Reply:
        ids = self.tokenize(request.body["prompt"])
        return 200, {"count": len(ids), "max_model_len": self.max_model_len, "tokens": ids, "token_strs": None}


# (method, path) -> reply; completions are FakeServer._complete.
ROUTES: dict[tuple[str, str], Callable[[FakeServer, Request], Reply] | None] = {
    ("GET", "/health"): lambda server, request: (200, None),
    ("GET", "/version"): lambda server, request: (200, {"version": server.version}),
    ("GET", "/v1/models"): FakeServer._models,
    ("GET", "/openapi.json"): FakeServer._openapi,
    ("GET", "/server_info"): FakeServer._server_info,
    ("GET", "/get_world_size"): FakeServer._world_size,
    ("GET", "/is_paused"): lambda server, request: (200, {"is_paused": server.state.paused != ""}),
    ("GET", "/weight_info"): lambda server, request: (200, {"weight_version": server.state.weight_version}),
    ("POST", CHAT): None,
    ("POST", f"{CHAT}/render"): FakeServer._render,
    ("POST", "/tokenize"): FakeServer._tokenize,
    ("POST", "/pause"): FakeServer._pause,
    ("POST", "/resume"): FakeServer._resume,
    ("POST", "/reset_prefix_cache"): lambda server, request: (200, {"success": server.state.caches_reset}),
    ("POST", "/reset_mm_cache"): lambda server, request: (200, None),
    ("POST", "/reset_encoder_cache"): lambda server, request: (200, None),
    ("POST", "/init_weight_transfer_engine"): FakeServer._init_transfer,
    ("POST", "/start_weight_update"): FakeServer._start_update,
    ("POST", "/update_weights"): FakeServer._update,
    ("POST", "/finish_weight_update"): FakeServer._finish_update,
}


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.fakes", description="A fake vLLM server on 127.0.0.1.")
    parser.add_argument("--seconds", type=float, default=0.0, help="per completion")
    seconds = parser.parse_args().seconds
    serve_by_hand(FakeServer(seconds=lambda body: seconds))


if __name__ == "__main__":
    main()

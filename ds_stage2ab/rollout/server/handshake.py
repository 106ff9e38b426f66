"""What is checked of a server before a run relies on it; all problems are reported together.

The server is not changed, except that one which an earlier learner left paused is resumed, and an update that was left
open is abandoned.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ds_stage2ab.carriers import Sample
from ds_stage2ab.codec.bins import NUM_BINS, coordinate_token
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.config.decoding_rules import DECODING, EVALUATION_DECODING
from ds_stage2ab.config.servers import API_KEY_ENV, DECODE_BATCH, GLOO_TRANSFER, INFER_TIMEOUT, MODEL_NAME
from ds_stage2ab.errors import ServerFault, printable
from ds_stage2ab.rollout.server.api import NEEDED_ROUTES, ServerApi
from ds_stage2ab.rollout.server.chat import Conversation, other_prompt, read_answer
from ds_stage2ab.rollout.server.fan_out import at_once
from ds_stage2ab.rollout.server.http_client import ClientError, ProtocolError, ReadTimeout, ServerUnavailable
from ds_stage2ab.runtime.shutdown import say

SUPPORTED = (0, 32)
"""Version of vLLM whose routes and answers are known; a patch release changes neither."""
SETTINGS = "/server_info?config_format=json"
OPENED = "VLLM_SERVER_DEV_MODE=1 and --enable-scale-out, on a loopback or closed network"
STARTED_SO = f'--weight-transfer-config \'{{"backend": "{GLOO_TRANSFER}"}}\''

LIKE_LEARNER = (
    "serve the folder of model.path: tokenizer, chat template and image limits must be the learner's;"
    " data.min_pixels and data.max_pixels are given to a server by --mm-processor-kwargs"
)
UNGUARDED = (
    "the repetition guard does not act inside it, and an answer that repeats itself is decoded to its end before the"
    " learner cuts it"
)
NO_KEY = (401, 403)
"""How a server, or a proxy before it, refuses a request without its key, or with another one."""
MOST_CALLS = 20
"""Upper bound of the calls to one server in a handshake."""
IS_VLLM = "use a vLLM of the supported range, and name the server itself in base_url, not what stands before it"
ITS_LOG = "look at the server's own log, and start it again"
TEMPERATURES = (f"{DECODING}.temperature", f"{EVALUATION_DECODING}.temperature")
CONTROL_TIMEOUT = "custom.extra.rollout_matching.vllm.server.timeout_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What the run requires of every server."""

    conversation: Conversation
    vocabulary: Vocabulary
    sample: Sample
    # a real one, whose prompt the server must tokenise as the learner does
    decode_batch_size: int
    room: int
    # tokens of the longest prompt and answer
    precision: str
    infer_timeout_s: float
    transfers: tuple[str, ...]
    # weight transfer engines that this learner can send to
    draws: bool
    # whether answers are drawn above temperature 0, in training or in evaluations


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """What was found out about a server."""

    world_size: int
    # devices
    replicas: int
    transfer: str
    # its weight transfer engine
    drafts: str = ""
    # how it decodes ahead of itself: vLLM's name of the method; empty: it does not


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    what: str
    saw: str
    fix: str


def check_servers(servers: Sequence[ServerApi], sizes: Sequence[int], requirements: Requirements) -> list[ServerInfo]:
    """Check all servers at once; what one of them leaves out, without harm to an answer, is a warning.

    Args:
        sizes: devices of one replica of each server, by the config; used where a server cannot tell.

    Raises:
        ServerFault: names all problems of all servers, with a remedy for each.
    """
    looks = [partial(_look, server, size, requirements) for server, size in zip(servers, sizes, strict=True)]
    longest = MOST_CALLS * max(server.longest_s(requirements.infer_timeout_s) for server in servers)
    found, wrong = zip(*at_once(looks, within_s=longest), strict=True)
    pages = []
    for server, lines in zip(servers, wrong, strict=True):
        if lines:
            told = "\n".join(f"    {line.what}: {line.saw}\n      fix: {line.fix}" for line in lines)
            pages.append(f"  {server.url}\n{told}")
    if pages:
        raise ServerFault(
            f"{len(pages)} of {len(servers)} rollout servers cannot be used\n" + "\n".join(pages),
            fix="start the servers as docs/rollout.md says, or let ds-stage2ab launch start them",
        )
    for server, info in zip(servers, found, strict=True):
        if info.drafts:
            say(f"{server.url} decodes ahead ({info.drafts}): {UNGUARDED}", head="warning")
    return list(found)


def _look(server: ServerApi, size: int, requirements: Requirements) -> tuple[ServerInfo | None, list[_Line]]:
    lines = list(_wrong(server, requirements))
    return None if lines else _facts(server, size, lines), lines


def _wrong(server: ServerApi, requirements: Requirements) -> Iterator[_Line]:
    """All problems, in the order in which one hides the next."""
    reach = "start it, or correct base_url; when it has just been started, wait for its /health"
    opened = _asked(lambda: server.get("/openapi.json")["paths"], "reached", fix=reach)
    if isinstance(opened, _Line):
        yield opened
        return
    missing = [route for route in NEEDED_ROUTES if route not in opened]
    if missing:
        saw = f"it has no {', '.join(missing)}"
        yield _Line(what="routes", saw=saw, fix=f"start it with {OPENED}")
        return
    yield from _wrong_version(server)
    yield from _wrong_settings(server, requirements)
    yield from _wrong_coordinates(server, requirements)
    let_go = _asked(lambda: _let_go(server), "paused", fix="start it again")
    if isinstance(let_go, _Line):
        yield let_go
        return
    yield from _wrong_prompt(server, requirements)


def _wrong_version(server: ServerApi) -> Iterator[_Line]:
    fix = f"use vLLM {SUPPORTED[0]}.{SUPPORTED[1]}: other versions have other routes for weights"
    version = _asked(lambda: str(server.get("/version")["version"]), "version")
    if isinstance(version, _Line):
        yield version
    elif not version.startswith(f"{SUPPORTED[0]}.{SUPPORTED[1]}."):
        yield _Line(what="version", saw=version, fix=fix)


def _wrong_settings(server: ServerApi, requirements: Requirements) -> Iterator[_Line]:
    lines = _asked(lambda: list(_compared(server.get(SETTINGS)["vllm_config"], requirements)), "settings")
    yield from [lines] if isinstance(lines, _Line) else lines


def _compared(info: dict[str, Any], requirements: Requirements) -> Iterator[_Line]:
    """Settings of a server that differ from the required ones."""
    model = info["model_config"]
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[requirements.precision]
    transfer = _transfer(info)
    if transfer not in requirements.transfers:
        saw = f"{transfer}; this learner can send over {' and '.join(requirements.transfers)}"
        fix = f"start it with {STARTED_SO}, with this package installed in its environment"
        yield _Line(what="weight transfer", saw=saw, fix=fix)
    wanted: list[tuple[str, object, object, str]] = [
        ("generation config", model["generation_config"], "vllm", "--generation-config vllm"),
        ("precision", str(model["dtype"]).removeprefix("torch."), dtype, f"--dtype {dtype}"),
        ("log-probabilities", model["logprobs_mode"], "raw_logprobs", "--logprobs-mode raw_logprobs"),
        ("served name", model["served_model_name"], MODEL_NAME, f"--served-model-name {MODEL_NAME}"),
    ]
    for what, saw, right, flag in wanted:
        if saw != right:
            yield _Line(what=what, saw=f"{saw}, not {right}", fix=f"start it with {flag}")
    if model["override_generation_config"]:
        saw = f"{model['override_generation_config']} for every request"
        yield _Line(what="generation override", saw=saw, fix="start it without --override-generation-config")
    ahead = _drafts(info)
    if ahead and requirements.draws:
        saw = f"it decodes ahead ({ahead}) and leaves out the draws of this package: it would sample other answers"
        fix = f"start it without --speculative-config, or set {' and '.join(TEMPERATURES)} to 0"
        yield _Line(what="speculation", saw=saw, fix=fix)
    if int(model["max_model_len"]) < requirements.room:
        saw = f"it takes {model['max_model_len']} tokens, prompt and answer need {requirements.room}"
        yield _Line(what="length", saw=saw, fix=f"start it with --max-model-len {requirements.room} or more")
    most = int(info["scheduler_config"]["max_num_seqs"])
    if most != requirements.decode_batch_size:
        saw = f"it decodes {most} sequences at once, {DECODE_BATCH} is {requirements.decode_batch_size}"
        yield _Line(what="decode batch", saw=saw, fix=f"start it with --max-num-seqs {requirements.decode_batch_size}")


def _wrong_coordinates(server: ServerApi, requirements: Requirements) -> Iterator[_Line]:
    """Compare the ids of coordinate tokens: prompts need not hold any, so two tokenizers may agree on a prompt."""
    texts, wanted = [coordinate_token(k) for k in range(NUM_BINS)], requirements.vocabulary.coordinate_ids
    ids = _asked(lambda: server.tokenize("".join(texts)), "coordinate ids", refused=LIKE_LEARNER)
    if isinstance(ids, _Line):
        yield ids
    elif ids != wanted:
        pairs = zip(texts, wanted, ids, strict=False)
        first = next((text for text, mine, its in pairs if mine != its), texts[-1])
        saw = f"{len(ids)} ids of {NUM_BINS} tokens, the first that is not the learner's at {first}"
        yield _Line(what="coordinate ids", saw=saw, fix=LIKE_LEARNER)


def _wrong_prompt(server: ServerApi, requirements: Requirements) -> Iterator[_Line]:
    """Generate one token for a real prompt: the engine works, and tokenises the prompt as the learner does."""
    body = requirements.conversation.probe(requirements.sample, num_tokens=1, seed=0)
    limit = requirements.infer_timeout_s
    reply = _asked(lambda: server.chat(body, read_s=limit), "an answer", key=INFER_TIMEOUT, refused=LIKE_LEARNER)
    if isinstance(reply, _Line):
        yield reply
        return
    other_ids = f"{LIKE_LEARNER}; {IS_VLLM}"
    answer = _asked(lambda: read_answer(reply, requirements.vocabulary), "an answer", fix=other_ids)
    if isinstance(answer, _Line):
        yield answer
    elif answer.prompt_ids != requirements.sample.prompt_ids:
        saw = other_prompt(server.url, requirements.sample, answer.prompt_ids).why
        yield _Line(what="prompt", saw=saw, fix=LIKE_LEARNER)
    else:
        yield from _wrong_rendering(server, requirements, body)


def _wrong_rendering(server: ServerApi, requirements: Requirements, body: dict[str, Any]) -> Iterator[_Line]:
    """Compare pixels, as two ways to resize an image may give as many patches, and the ends of an answer."""
    stop = requirements.conversation.stop_id
    asked = {**body, "stop_token_ids": [stop], "min_tokens": 0}
    seen = _asked(lambda: server.render(asked, read_s=requirements.infer_timeout_s), "pixel values", key=INFER_TIMEOUT)
    if isinstance(seen, _Line):
        yield seen
        return
    if seen.stop_ids != (stop,) or not seen.ignores_eos:
        ends = " and ".join([*map(str, seen.stop_ids), *([] if seen.ignores_eos else ["what the checkpoint names"])])
        saw = f"an answer ends at {ends or 'none'}, the learner's at {stop} alone"
        fix = f"serve the model of model.path by itself: it needs no stop ids of its server; {IS_VLLM}"
        yield _Line(what="stop ids", saw=saw, fix=fix)
    if not any(pixels in seen.image for pixels in _pixels(requirements)):
        fix = (
            "start it with --no-mm-device-do-normalize, and with this package installed in its environment: Pillow cuts"
            " the learner's images, and the plugin lets it cut the server's"
        )
        saw = f"other ones than the learner's for sample {printable(requirements.sample.id)}"
        yield _Line(what="pixel values", saw=saw, fix=fix)


def _pixels(requirements: Requirements) -> Iterator[bytes]:
    """The learner's pixel values as they may be in a server's memory: as made, or in the model's precision."""
    made = requirements.sample.vision.pixel_values.contiguous()
    for values in (made, made.bfloat16()) if requirements.precision == "bf16" else (made,):
        yield values.view(torch.uint8).numpy().tobytes()


def _let_go(server: ServerApi) -> None:
    """Resume a paused server, which may have been left in the middle of an update."""
    if server.get("/is_paused")["is_paused"]:
        server.abandon_update()
        server.resume()


def _facts(server: ServerApi, size: int, lines: list[_Line]) -> ServerInfo | None:
    told = _asked(server.world_size, "devices")
    replica = _asked(lambda: server.replica_size() if _tells_replicas(server) else size, "devices of a replica")
    settings = _asked(lambda: server.get(SETTINGS)["vllm_config"], "weight transfer")
    unknown = [one for one in (told, replica, settings) if isinstance(one, _Line)]
    if unknown:
        lines += unknown
        return None
    if replica < 1 or told < 1 or told % replica:
        saw = f"{told} devices do not make whole replicas of {replica}"
        lines.append(_Line(what="replicas", saw=saw, fix="set tensor_parallel_size to what the server runs with"))
        return None
    transfer, drafts = _transfer(settings), _drafts(settings)
    return ServerInfo(world_size=told, replicas=told // replica, transfer=transfer, drafts=drafts)


def _transfer(info: dict[str, Any]) -> str | None:
    return (info.get("weight_transfer_config") or {}).get("backend")


def _drafts(info: dict[str, Any]) -> str:
    return (info["speculative_config"] or {}).get("method") or ""


def _tells_replicas(server: ServerApi) -> bool:
    """Whether it knows `include_dp`: a server that does not ignores it."""
    parameters = server.get("/openapi.json")["paths"]["/get_world_size"]["get"].get("parameters")
    return any(parameter["name"] == "include_dp" for parameter in parameters or ())


def _asked(
    ask: Callable[[], Any], what: str, *, key: str = CONTROL_TIMEOUT, refused: str = IS_VLLM, fix: str = ""
) -> Any:
    """The result of a call, or the line that reports its failure, with a remedy.

    Args:
        key: the config key of the call's time-out.
        refused: the remedy if the server refuses the request.
        fix: the remedy of every failure.
    """
    try:
        return ask()
    except ReadTimeout as error:
        slow = f"look at the server's own log; where it is only slow, set {key} higher"
        return _Line(what=what, saw=str(error), fix=fix or slow)
    except ProtocolError as error:
        return _Line(what=what, saw=str(error), fix=fix or IS_VLLM)
    except ServerUnavailable as error:
        return _Line(what=what, saw=str(error), fix=fix or ITS_LOG)
    except ClientError as error:
        key = f"it asks for a key: set {API_KEY_ENV} to the name of the environment variable that holds it"
        return _Line(what=what, saw=str(error), fix=key if error.status in NO_KEY else fix or refused)
    except (KeyError, TypeError, ValueError) as error:
        saw = f"an answer of another form ({type(error).__name__}: {error})"
        return _Line(what=what, saw=saw, fix=fix or IS_VLLM)

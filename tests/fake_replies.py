"""What a fake server says when nothing is wrong, as data: `tests/fakes.py` sends it."""

import base64
import time
from collections.abc import Callable
from http import HTTPStatus

from tests.loopback import JSON


def completion(
    body: JSON,
    ids: list[int],
    finish: str,
    *,
    prompt_ids: list[int],
    logprobs: Callable[[JSON, list[int]], list[float]],
    model: str,
) -> JSON:
    """The reply to a chat request."""
    stopped_by = ids[-1] if finish == "stop" and ids and ids[-1] in (body.get("stop_token_ids") or []) else None
    wants_ids = body.get("return_token_ids") is True
    message = {"role": "assistant", "content": " ".join(map(str, ids)), "refusal": None, "annotations": None}
    message |= {"audio": None, "function_call": None, "reasoning": None}
    choice = {
        "index": 0,
        "message": message,
        "logprobs": _logprobs(body, ids, logprobs(body, ids)) if body.get("logprobs") else None,
        "finish_reason": finish,
        "stop_reason": stopped_by,
        "token_ids": ids if wants_ids else None,
        "routed_experts": None,
    }
    usage = {"prompt_tokens": len(prompt_ids), "completion_tokens": len(ids)}
    usage["total_tokens"] = len(prompt_ids) + len(ids)
    return {
        "id": f"chatcmpl-{body.get('request_id') or time.monotonic_ns()}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [choice],
        "service_tier": None,
        "system_fingerprint": None,
        "usage": usage | {"prompt_tokens_details": None, "completion_tokens_details": None},
        "prompt_logprobs": None,
        "prompt_token_ids": prompt_ids if wants_ids else None,
        "prompt_text": None,
        "kv_transfer_params": None,
    }


def _logprobs(body: JSON, ids: list[int], logprobs: list[float]) -> JSON:
    as_ids = body.get("return_tokens_as_token_ids") is True
    content = []
    for token, logprob in zip(ids, logprobs, strict=True):
        text = f"token_id:{token}" if as_ids else str(token)
        entry = {"token": text, "logprob": logprob, "bytes": list(text.encode())}
        content.append(entry | {"top_logprobs": [entry] if body.get("top_logprobs") else []})
    return {"content": content}


def rendered(body: JSON, image: bytes, added_stop_ids: tuple[int, ...], *, ignores_eos: bool) -> JSON:
    """A chat request as the engine would get it; of the sampling fields vLLM leaves out what is as by default."""
    sampling: JSON = {"stop_token_ids": [*(body.get("stop_token_ids") or []), *added_stop_ids]}
    if body.get("ignore_eos") and ignores_eos:
        sampling["ignore_eos"] = True
    image_data = base64.b64encode(image).decode()
    return {"features": {"kwargs_data": {"image": [image_data]}}, "sampling_params": sampling}


def refused(status: int, message: str) -> tuple[int, JSON]:
    return status, {"error": {"message": message, "type": HTTPStatus(status).phrase, "param": None, "code": status}}

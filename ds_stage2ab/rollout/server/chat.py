"""A sample as a chat request of vLLM, and the reply to it, checked. Sends nothing.

Every sampling field is set: what a request leaves out, a server takes from its own defaults or from the checkpoint's
generation_config.json.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jsonschema import Draft202012Validator

from ds_stage2ab.carriers import Sample
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.config.servers import MODEL_NAME
from ds_stage2ab.errors import ServerFault, printable
from ds_stage2ab.rollout.base import Sampling
from ds_stage2ab.rollout.draws import DRAWN_HERE
from ds_stage2ab.rollout.repeat_guard import GuardParams, has_rules
from ds_stage2ab.rollout.server.http_client import ServerUnavailable

IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}}
LOG_PROBS = {
    "type": "object",
    "required": ["content"],
    "properties": {
        "content": {
            "type": "array",
            "items": {"type": "object", "required": ["logprob"], "properties": {"logprob": {"type": "number"}}},
        }
    },
}
ANSWER = Draft202012Validator(
    {
        "type": "object",
        "required": ["choices", "prompt_token_ids"],
        "properties": {
            "prompt_token_ids": IDS,
            "choices": {
                "type": "array",
                "minItems": 1,
                "maxItems": 1,
                "items": {
                    "type": "object",
                    "required": ["token_ids", "finish_reason"],
                    "properties": {
                        "token_ids": IDS,
                        "finish_reason": {"enum": ["stop", "length"]},
                        "logprobs": {"anyOf": [{"type": "null"}, LOG_PROBS]},
                    },
                },
            },
        },
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What all prompts of a run share."""

    system_prompt: str | None
    forbidden: tuple[str, ...]
    # texts of the tokens that may not be sampled
    stop_id: int
    coordinate_ids: tuple[int, ...]

    def messages(self, image: bytes, user_prompt: str) -> list[dict[str, Any]]:
        """The turns before the answer; the image as its file's bytes, never as a path."""
        address = f"data:application/octet-stream;base64,{base64.b64encode(image).decode()}"
        shown = {"type": "image_url", "image_url": {"url": address}}
        user = {"role": "user", "content": [shown, {"type": "text", "text": user_prompt}]}
        if self.system_prompt is None:
            return [user]
        return [{"role": "system", "content": [{"type": "text", "text": self.system_prompt}]}, user]

    def request(self, sample: Sample, sampling: Sampling, seed: int) -> dict[str, Any]:
        """The body of a chat request; it alone determines how the answer is sampled."""
        return {
            **self.question(sample),
            **self.decoding(sampling),
            "seed": seed,
        }

    def question(self, sample: Sample) -> dict[str, Any]:
        """The prompt, and the form of the reply."""
        return {
            "model": MODEL_NAME,
            "messages": self.messages(sample.image, sample.user_prompt),
            "add_generation_prompt": True,
            "return_token_ids": True,
            "stream": False,
        }

    def decoding(self, sampling: Sampling) -> dict[str, Any]:
        """All fields that affect sampling."""
        return {
            **self.fixed(),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "repetition_penalty": sampling.repetition_penalty,
            "max_completion_tokens": sampling.max_new_tokens,
            "min_tokens": 0,
            "stop_token_ids": [self.stop_id],
            "logprobs": False,
            **self.extended(sampling),
        }

    def extended(self, sampling: Sampling) -> dict[str, Any]:
        """Arguments of what this package adds to the server.

        A server without it samples by itself, with a random stream of its own, and generates longer.
        """
        given: dict[str, Any] = {} if sampling.temperature == 0 else {DRAWN_HERE: 1}
        if has_rules(sampling.repeat_terminate):
            counted = self.coordinate_ids if sampling.repeat_terminate.max_objects is not None else ()
            params = GuardParams(
                limits=sampling.repeat_terminate,
                stop_id=self.stop_id,
                coordinate_ids=counted,
                per_object=sampling.coordinates_per_object,
            )
            given |= params.arguments()
        return {"vllm_xargs": given} if given else {}

    def fixed(self) -> dict[str, Any]:
        """Fields that no config changes."""
        return {
            "n": 1,
            "min_p": 0.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "length_penalty": 1.0,
            "stop": [],
            "ignore_eos": True,  # the stop token of a request is the only one
            "bad_words": list(self.forbidden),
            "logit_bias": None,
            "use_beam_search": False,
            "skip_special_tokens": False,
        }

    def probe(self, sample: Sample, *, num_tokens: int, seed: int) -> dict[str, Any]:
        """A request for tokens and their log-probabilities; sampled, as greedy tokens have probabilities near 1."""
        plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
        return {
            **self.question(sample),
            **self.fixed(),
            **plain,
            "max_completion_tokens": num_tokens,
            "min_tokens": num_tokens,
            "stop_token_ids": [],
            "logprobs": True,
            "top_logprobs": 0,
            "seed": seed,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A server's answer, checked."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    # without the stop
    finish: Literal["stop", "length"]
    log_probs: tuple[float, ...]
    # of the response, if requested


def read_answer(reply: Any, vocabulary: Vocabulary) -> Answer:
    """Check a chat reply and convert it.

    Raises:
        ServerUnavailable: it is malformed, or holds ids that the vocabulary does not have or no answer may hold.
    """
    fault = next(iter(ANSWER.iter_errors(reply)), None)
    if fault is not None:
        raise ServerUnavailable(f"the answer is malformed at {fault.json_path}: {fault.message[:120]}")
    (choice,) = reply["choices"]
    ids, finish = [int(token) for token in choice["token_ids"]], choice["finish_reason"]
    size = len(vocabulary.token_bytes)
    strange = next((token for token in ids if token >= size), None)
    if strange is not None:
        raise ServerUnavailable(f"the answer holds token id {strange}, and the vocabulary ends at {size - 1}")
    banned = next((token for token in ids if token in vocabulary.vision_ids), None)
    if banned is not None:
        why = f"the answer holds token id {banned}, which stands for an image: the request forbids it"
        raise ServerUnavailable(why)
    if not ids and finish != "stop":
        raise ServerUnavailable(f"the answer holds no token and ended by {finish}")
    logged = choice.get("logprobs")
    ended = bool(ids) and ids[-1] == vocabulary.stop_id
    return Answer(
        prompt_ids=tuple(reply["prompt_token_ids"]),
        response_ids=tuple(ids[:-1] if ended and finish == "stop" else ids),
        finish=finish,
        log_probs=tuple(token["logprob"] for token in logged["content"]) if logged else (),
    )


def other_prompt(url: str, sample: Sample, seen: Sequence[int]) -> ServerFault:
    """The fault of a server that makes other ids of a prompt than the learner."""
    pairs = zip(sample.prompt_ids, seen, strict=False)
    place = next((n for n, (mine, its) in enumerate(pairs) if mine != its), min(len(seen), len(sample.prompt_ids)))
    return ServerFault(
        f"the server made other ids of the prompt of sample {printable(sample.id)} than the learner: {len(seen)}"
        f" instead of {len(sample.prompt_ids)}, the first difference at place {place}",
        where=url,
        fix="serve the folder of model.path: its tokenizer, chat template and image limits must be the learner's",
    )

"""Fake servers that a learner takes for real ones: they read its prompts and pixels alike, and take its weights.

Answers are empty, and no probe can pass: a run sets its tolerance aside.
"""

import base64
from datetime import timedelta
from typing import Any

import torch

from ds_stage2ab.data.records import read_records
from ds_stage2ab.rollout.server.gloo import GlooGroup, join
from tests.fakes import JSON, FakeServer
from tests.parts import Quickstart
from tests.unit.parts import Bench

MATCHING = "custom.extra.rollout_matching"


class Worker:
    """Meets the learner in a Gloo group, as a server's worker does, and forgets what it gets there."""

    def __init__(self) -> None:
        self.group: GlooGroup | None = None
        self.taken = 0  # buckets

    def join(self, invitation: JSON) -> None:
        limit = timedelta(seconds=invitation["timeout_s"])
        self.group = join(invitation["address"], invitation["port"], 1, invitation["size"], limit)

    def take(self, bucket: JSON) -> None:
        for dtype, shape in zip(bucket["dtype_names"], bucket["shapes"], strict=True):
            self.group.finish(self.group.begin(torch.empty(shape, dtype=getattr(torch, dtype))))
        self.taken += 1


class Scenes:
    """The training scenes, as a server sees them."""

    def __init__(self, bench: Bench, parts: Quickstart) -> None:
        self.bench = bench
        records = list(read_records(parts.data / "train.jsonl", image_root=None, box_format="bins"))
        self.by_image = {record.image.read_bytes(): record for record in records}
        self.largest = max(records, key=lambda record: record.width * record.height)

    def id_of(self, body: JSON) -> str:
        """The sample of a chat request."""
        return self.by_image[image_of(body)].id

    def server(self, **settings: Any) -> FakeServer:
        vocabulary, encoder = self.bench.vocabulary, self.bench.encoder
        empty = [*vocabulary.encode('{"objects": []}'), vocabulary.stop_id]

        def answer(body: JSON) -> tuple[list[int], str]:
            count = body["min_tokens"]
            return ([11] * count, "length") if count else (empty, "stop")

        alike = {
            "prompt_ids": lambda body: list(encoder.encode(self.by_image[image_of(body)], 0).prompt_ids),
            "tokenize": vocabulary.encode,
            "answer": answer,
            "workers": Worker(),
        }
        server = FakeServer(**{**alike, **settings})
        server.state.image = encoder.encode(self.largest, 0).vision.pixel_values.numpy().tobytes()
        return server


def is_rollout(number: int, body: JSON) -> bool:
    """And no probe: those ask for a number of tokens."""
    return not body["min_tokens"]


def image_of(body: JSON) -> bytes:
    (shown,) = (part for part in body["messages"][-1]["content"] if part["type"] == "image_url")
    return base64.b64decode(shown["image_url"]["url"].partition(",")[2])


def drawn_by(*servers: FakeServer) -> dict[str, Any]:
    """What makes a small run draw its rollouts there: B steps of 8 samples, short limits."""
    return {
        f"{MATCHING}.rollout_backend": "vllm",
        f"{MATCHING}.vllm.server.servers": [{"base_url": server.base_url} for server in servers],
        f"{MATCHING}.vllm.server.infer_timeout_s": 5,
        f"{MATCHING}.vllm.server.recover_s": 1,
        f"{MATCHING}.vllm.sync.timeout_s": 30,
        f"{MATCHING}.vllm.probe.tolerance": 1e9,
        "stage2_ab.schedule.b_ratio": 1,
        "training.max_steps": 2,
    }

"""Answers by a vLLM server, with whatever weights it has; it need not be a rollout server of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ds_stage2ab.carriers import Rollout, Sample
from ds_stage2ab.codec.vocabulary import VISION_TOKENS, Vocabulary
from ds_stage2ab.config.servers import MODEL_NAME
from ds_stage2ab.errors import ConfigError, DataError, ServerFault
from ds_stage2ab.model_folder.read import TOKENIZER
from ds_stage2ab.rollout.base import Sampling
from ds_stage2ab.rollout.server.api import ServerApi, as_server_fault
from ds_stage2ab.rollout.server.ask import Asker
from ds_stage2ab.rollout.server.chat import Conversation
from ds_stage2ab.rollout.server.http_client import TRIES
from ds_stage2ab.rollout.server.request_pool import RequestPool

CONNECT_S = 30.0
UNKNOWN = "unknown"
"""The version of weights that nobody sent."""


def server_at(address: str, batch: int, key: str | None) -> ServerApi:
    return ServerApi(address.rstrip("/"), timeout_s=CONNECT_S, connections=batch + 1, api_key=key)


def folder_of(server: ServerApi) -> Path:
    """The folder that a server says it serves.

    Raises:
        ServerFault: it does not answer, or serves under another name than a server for this package does.
        ConfigError: the folder is not on this machine.
    """
    with as_server_fault(server.url, "asking what it serves", fix="name the address of a vLLM server that runs"):
        models: dict[str, Any] = {one["id"]: one for one in server.get("/v1/models")["data"]}
        if MODEL_NAME not in models:
            why = f"it serves {', '.join(models) or 'nothing'}, not {MODEL_NAME}"
            raise ServerFault(why, where=server.url, fix=f"start it with --served-model-name {MODEL_NAME}")
        folder = Path(str(models[MODEL_NAME]["root"]))
    if not os.path.isfile(folder / TOKENIZER):
        why = f"the server has its model in {folder}, which is not on this machine"
        fix = "give --model DIR: a copy of that folder; the weights may be left out"
        raise ConfigError(why, where=server.url, fix=fix)
    return folder


class Served:
    """Puts samples to a server, so many at once.

    Args:
        read_s: longest wait for one answer, seconds.
    """

    def __init__(
        self,
        server: ServerApi,
        vocabulary: Vocabulary,
        *,
        system_prompt: str | None,
        batch: int,
        read_s: float,
    ) -> None:
        self.server = server
        self.batch = batch
        self.asker = Asker(
            conversation=Conversation(
                system_prompt=system_prompt,
                forbidden=tuple(text for text in VISION_TOKENS if text in vocabulary.added_texts),
                stop_id=vocabulary.stop_id,
                coordinate_ids=vocabulary.coordinate_ids,
            ),
            vocabulary=vocabulary,
            seed=0,
            read_s=read_s,
            log_probs=True,
        )

    def generate(self, samples: list[Sample], sampling: Sampling) -> Iterator[Rollout | DataError]:
        """One rollout for each sample, in order, as they arrive."""

        def ask(request: int, server: int, attempt: int) -> Rollout | DataError:
            return self.asker(self.server, samples[request], sampling, version=UNKNOWN, attempt=attempt)

        pool = RequestPool(len(samples), [self.batch], ask)
        yield from pool.results(within_s=self.asker.read_s * TRIES * (1 + len(samples)))

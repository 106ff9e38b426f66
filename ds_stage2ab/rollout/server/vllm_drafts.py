"""Inside a vLLM server: drafts of what stands between boxes, for servers that are started to decode ahead.

    --speculative-config '{"method": "custom_class", "num_speculative_tokens": 8,
                           "model": "ds_stage2ab.rollout.server.vllm_drafts.Drafts"}'

Prompt lookup (Saxena 2023) in which all coordinates are one token: an answer repeats its structure with every object,
and its boxes never. For a first object the answer with the most boxes so far is looked through too. vLLM verifies every
draft, so a wrong one costs its share of a pass and changes no token. With drafts it leaves out the logits processors of
plugins, and so `vllm_guard`: the handshake says what then cannot be.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer

from ds_stage2ab.codec.bins import NUM_BINS, coordinate_token

LOOKED_AT = 512
"""Tokens of a sequence, the last ones, that are looked through: some objects of the answer."""
SHORTEST_MATCH, LONGEST_MATCH = 2, 16
COORDINATE = -1
BETWEEN = -2
"""Stand for every coordinate, and for the border of two sequences."""


def draft(blind_T: NDArray[np.int64], most: int) -> list[int]:
    """What followed the longest earlier match of the last tokens, up to the next coordinate.

    If the last token has not been seen before, it is taken for a name: what stood behind it in the place of another.

    Args:
        blind_T: the tokens of a sequence, and of others before it; `COORDINATE` for each coordinate.
        most: tokens of a draft.
    """
    for unknown in (0, 1):
        places = _matches(blind_T, unknown)
        if len(places):
            follows = blind_T[places[-1] + 1 :][:most]
            ends = np.flatnonzero(follows < 0)
            return follows[: ends[0] if len(ends) else None].tolist()
    return []


def _matches(blind_T: NDArray[np.int64], unknown: int) -> NDArray[np.int64]:
    """Earlier places that end as the sequence does, the longest of them; a name may stand in the last `unknown`."""
    last = len(blind_T) - 1
    places, matched = np.arange(last), 0
    if unknown:
        places = np.flatnonzero(blind_T[:last] >= 0) if last >= 0 and blind_T[last] >= 0 else places[:0]
    for back in range(unknown, min(LONGEST_MATCH, last)):
        longer = places[places >= back]
        longer = longer[blind_T[longer - back] == blind_T[last - back]]
        if not len(longer):
            break
        places, matched = longer, matched + 1
    return places if matched >= SHORTEST_MATCH else places[:0]


class Drafts:
    """vLLM's interface of a proposer class (`vllm.v1.spec_decode.custom_class_proposer`).

    Args:
        config: vLLM's.
    """

    def __init__(self, config: Any) -> None:
        tokenizer = AutoTokenizer.from_pretrained(config.model_config.tokenizer)
        texts = [coordinate_token(k) for k in range(NUM_BINS)]
        self.coordinate_ids = np.array(tokenizer.convert_tokens_to_ids(texts))
        self.most = config.speculative_config.num_speculative_tokens
        self.known_T = np.array([BETWEEN])

    def load_model(self, *model: Any) -> None:
        """There are no weights."""

    def propose(
        self, sampled: Sequence[Sequence[int]], lengths: NDArray[np.int32], ids: NDArray[np.int32], **other: Any
    ) -> list[list[int]]:
        """Drafts of each row; none of one that has no new token.

        Args:
            sampled: new tokens of each row.
            lengths: tokens of each row, these counted.
            ids: [rows, longest] all tokens.
        """
        room = ids.shape[1] - 1 - lengths  # a draft is followed by a token
        return [
            self._draft(ids[row, : lengths[row]])[: max(0, room[row])] if new else [] for row, new in enumerate(sampled)
        ]

    def _draft(self, ids_T: NDArray[np.int32]) -> list[int]:
        seen_T = ids_T[-LOOKED_AT:].astype(np.int64)
        seen_T = np.where(np.isin(seen_T, self.coordinate_ids), COORDINATE, seen_T)
        found = draft(np.concatenate([self.known_T, seen_T]), self.most)
        if np.count_nonzero(seen_T == COORDINATE) >= np.count_nonzero(self.known_T == COORDINATE):
            self.known_T = np.append(seen_T, BETWEEN)
        return found

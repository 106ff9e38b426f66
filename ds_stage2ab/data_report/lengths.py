"""Prompts and answers in tokens, against the caps of a config. Needs the checkpoint's tokenizer, no weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_stage2ab.carriers import Record
from ds_stage2ab.codec.text import encode_answer, get_codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.config.batch import counted
from ds_stage2ab.config.rules import LENGTH_CAP, MAX_NEW_TOKENS
from ds_stage2ab.config.sections import Config
from ds_stage2ab.data.asked import Asked
from ds_stage2ab.data.prompt import image_place, prompt_text
from ds_stage2ab.errors import EnvironmentFault, Stage2Error
from ds_stage2ab.model_folder.checks import check_folder
from ds_stage2ab.model_folder.images import image_limits, image_tokens

MOST_KEPT = 10_000  # prompts whose tokens are kept
PROMPT, ANSWER, BOTH = "prompt with image, tokens", "answer, tokens", "prompt and answer, tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounter:
    """Counts as a run does: the image's tokens from its size, the text's with the checkpoint's tokenizer."""

    config: Config
    vocabulary: Vocabulary
    words_of: Callable[[str], int]
    # user's prompt -> tokens of the prompt without those of the image
    limits: Any
    # of images

    def measures(self, records: Iterable[Record]) -> dict[str, NDArray[np.float64]]:
        """Tokens of each record; with absent names in its prompt, of the longest prompt that it may have.

        Raises:
            DataError: a description cannot be written with this tokenizer.
        """
        records, codec, data = list(records), get_codec(self.config.data.codec), self.config.data
        asked = Asked.of(records, data.user_prompt, data.negative_classes, self.config.training.seed)
        counts = [
            (
                self.words_of(asked.longest(one).prompt) + image_tokens((one.width, one.height), self.limits),
                len(encode_answer(one.objects, self.vocabulary, codec, where=one.where).ids),
            )
            for one in records
        ]
        prompts, answers = np.array(counts, dtype=float).T
        return {PROMPT: prompts, ANSWER: answers, BOTH: prompts + answers}


def token_counter(config: Config) -> TokenCounter:
    """The counter of a config's checkpoint.

    Raises:
        EnvironmentFault: the folder is missing or contradicts itself, or its tokenizer cannot be loaded.
        ConfigError: a pixel limit crosses the checkpoint's other one, or the prompt is no prompt with one image.
    """
    from transformers import AutoTokenizer

    data = config.data
    folder = check_folder(config.model.path, whole=False)
    limits = image_limits(folder.image_settings, min_pixels=data.min_pixels, max_pixels=data.max_pixels)
    fix = "set model.path to the folder of a Qwen3-VL, with its tokenizer and image processor"
    if limits is None:
        raise EnvironmentFault("has no settings of an image processor", where=str(folder.path), fix=fix)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder.path)
    except (Stage2Error, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # each of the libraries raises its own, tokenizers a panic of Rust
        why = f"its tokenizer cannot be loaded: {error}"
        raise EnvironmentFault(why, where=str(folder.path), fix=fix) from error
    if folder.older_template:
        tokenizer.chat_template = folder.older_template
    vocabulary = Vocabulary.from_tokenizer(tokenizer)

    @lru_cache(MOST_KEPT)
    def words_of(user_prompt: str) -> int:
        ids = tokenizer.encode(prompt_text(tokenizer, data.system_prompt, user_prompt), add_special_tokens=False)
        image_place(ids, vocabulary.image_id, str(folder.path))
        return len(ids) - 1

    words_of(data.user_prompt)  # a prompt that is none shows before the records
    return TokenCounter(config=config, vocabulary=vocabulary, words_of=words_of, limits=limits)


def over_the_caps(measures: dict[str, NDArray[np.float64]], config: Config) -> Iterator[str]:
    """What does not fit, a sentence each."""
    cap, answer_cap = config.training.global_max_length, config.rollout_matching.max_new_tokens
    longest = {name: int(measures[name].max()) for name in (PROMPT, ANSWER, BOTH)}
    if longest[BOTH] > cap:
        count = int((measures[BOTH] > cap).sum())
        remedy = f"set {LENGTH_CAP} to {longest[BOTH]} or more, or data.on_overlong: skip"
        many = counted(count, "sample")
        yield f"{many} above {LENGTH_CAP} of {cap:,} tokens, the longest has {longest[BOTH]:,}: {remedy}"
    if longest[ANSWER] > answer_cap:
        count = int((measures[ANSWER] > answer_cap).sum())
        remedy = f"set {MAX_NEW_TOKENS} to {longest[ANSWER]} or more"
        yield f"{counted(count, 'true answer')} above {MAX_NEW_TOKENS} of {answer_cap:,} tokens: {remedy}"
    if longest[PROMPT] + answer_cap > cap:
        what = f"the longest prompt has {longest[PROMPT]:,} tokens, and {MAX_NEW_TOKENS} allows {answer_cap:,} more"
        yield f"{what}: together more than {LENGTH_CAP} {cap:,}, which a run refuses where the model answers"

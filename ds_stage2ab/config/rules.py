"""Rules between keys: small functions of plain numbers, each named after what it demands.

A rule returns nothing, or raises ConfigError whose `where` is the key to change. Those that depend on the devices of a
run are in `topology_rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ds_stage2ab.config.batch import counted
from ds_stage2ab.config.decoding_rules import (
    BEST_OF,
    DECODING,
    EVALUATION_DECODING,
    evaluation_temperature_can_be_felt,
    greedy_decoding_draws_nothing,
    greedy_evaluation_draws_nothing,
    rollouts_to_choose_from_differ,
    temperature_can_be_felt,
)
from ds_stage2ab.config.problems import KeyPath, value_at
from ds_stage2ab.config.score_rules import (
    CODEC,
    KEEP_SPURIOUS,
    NOISE,
    REWRITE_ORDER,
    noise_objects_have_a_score,
    spurious_objects_stay_where_they_were_said,
)
from ds_stage2ab.config.sections import APPEND, CLASSES, NO_OFFLOAD
from ds_stage2ab.config.servers import BACKEND, SERVERS
from ds_stage2ab.errors import ConfigError

B_RATIO = "stage2_ab.schedule.b_ratio"
TARGET = "stage2_ab.channel_b.target"
DROP_MULTIPLIER = "stage2_ab.channel_b.drop_invalid_struct_ce_multiplier"
LENGTH_CAP = "training.global_max_length"
MAX_NEW_TOKENS = "custom.extra.rollout_matching.max_new_tokens"
NGRAM_SIZE = "custom.extra.rollout_matching.repeat_terminate.ngram_size"
NGRAM_REPEATS = "custom.extra.rollout_matching.repeat_terminate.max_ngram_repeats"
SCHEDULER = "training.lr_scheduler"
FINAL_RATE = "training.min_learning_rate_ratio"
FREEZE = "model.freeze"
TUNER = "tuner.type"
TOKEN_ROWS = "tuner.trainable_token_rows"
ZERO_STAGE = "deepspeed.zero_stage"
OFFLOAD = "deepspeed.offload_optimizer"
MIN_PIXELS = "data.min_pixels"
NEGATIVE_CLASSES, USER_PROMPT = "data.negative_classes", "data.user_prompt"
MAX_PIXELS = "data.max_pixels"
VALIDATION = "data.validation"
EVALUATE_EVERY = "evaluation.every_steps"
STOP_AFTER = "evaluation.stop_after"
KEEP_BEST = "checkpoint.keep_best"
REPLAY_RUN = "custom.extra.rollout_matching.replay.run"

MODEL_PARTS = 3  # vision, aligner, language


@dataclass(frozen=True, slots=True)
class Rule:
    """A function and the keys whose values it is called with, in order."""

    check: Callable[..., None]
    keys: tuple[str, ...]

    @property
    def paths(self) -> list[KeyPath]:
        return [tuple(key.split(".")) for key in self.keys]


def repeated_sequences_have_length_and_number(ngram_size: int | None, max_ngram_repeats: int | None) -> None:
    """One of the two alone would be ignored."""
    if (ngram_size is None) != (max_ngram_repeats is None):
        given, missing = (NGRAM_SIZE, NGRAM_REPEATS) if max_ngram_repeats is None else (NGRAM_REPEATS, NGRAM_SIZE)
        raise ConfigError(f"it has no effect without {missing}", where=given, fix=f"set both, or delete {given}")


def only_rewritten_answers_have_an_order(target: str, rewrite_order: str | None) -> None:
    """An answer to which missed objects are appended stays in the order in which it was generated."""
    if target == APPEND and rewrite_order is not None:
        raise ConfigError(
            f"{rewrite_order} has no effect with {TARGET} {APPEND}",
            where=REWRITE_ORDER,
            fix=f"delete {REWRITE_ORDER}, or set {TARGET} to rewrite",
        )


def only_appended_objects_have_a_multiplier(target: str, multiplier: float) -> None:
    """A rewritten answer has no dropped values, and nothing follows them."""
    if target != APPEND and multiplier != 1:
        raise ConfigError(
            f"{multiplier} has no effect with {TARGET} {target}",
            where=DROP_MULTIPLIER,
            fix=f"delete {DROP_MULTIPLIER}, or set {TARGET} to {APPEND}",
        )


def answer_fits_length(max_new_tokens: int, global_max_length: int) -> None:
    """Rule 4 on the numbers of the config: prompt and answer share the cap, and a prompt has a token at least."""
    if max_new_tokens >= global_max_length:
        raise ConfigError(
            f"{max_new_tokens} leaves no room for a prompt: prompt and answer share"
            f" {LENGTH_CAP}, which is {global_max_length}",
            where=MAX_NEW_TOKENS,
            fix=f"set {MAX_NEW_TOKENS} well below {global_max_length}, or raise {LENGTH_CAP}",
        )


def rollout_fits_length(prompt_tokens: int, max_new_tokens: int, global_max_length: int, position_limit: int) -> None:
    """Rule 4 in full, once the longest prompt and the model are known."""
    limit = min(global_max_length, position_limit)
    if prompt_tokens + max_new_tokens > limit:
        kind = LENGTH_CAP if limit == global_max_length else "the model's position limit"
        room = limit - prompt_tokens
        raise ConfigError(
            f"the longest prompt has {prompt_tokens} tokens; with {max_new_tokens} new ones it exceeds"
            f" {kind}, which is {limit}",
            where=MAX_NEW_TOKENS,
            fix=(f"set {MAX_NEW_TOKENS} to {room} or less" if room > 0 else f"raise {kind}")
            + f", or set {MAX_PIXELS} lower",
        )


def constant_rate_does_not_fall(lr_scheduler: str, min_learning_rate_ratio: float) -> None:
    """A final rate other than 0 would be ignored by the constant schedule."""
    if lr_scheduler == "constant" and min_learning_rate_ratio != 0:
        raise ConfigError(
            f"{min_learning_rate_ratio} has no effect: the constant schedule does not fall",
            where=FINAL_RATE,
            fix=f"delete {FINAL_RATE}, or set {SCHEDULER} to linear or cosine",
        )


def offload_needs_zero(offload_optimizer: str, zero_stage: int) -> None:
    """Without ZeRO DeepSpeed would ignore it."""
    if offload_optimizer != NO_OFFLOAD and zero_stage == 0:
        raise ConfigError(
            f"{offload_optimizer} has no effect with {ZERO_STAGE} 0",
            where=OFFLOAD,
            fix=f"set {ZERO_STAGE} to 1 or more, or delete {OFFLOAD}",
        )


def rows_are_trained_beside_adapters(trainable_token_rows: str | None, tuner: str) -> None:
    """With `full` every row is trained, or none: the key would be ignored."""
    if trainable_token_rows is not None and tuner == "full":
        raise ConfigError(
            f"{trainable_token_rows} has no effect with {TUNER} full",
            where=TOKEN_ROWS,
            fix=f"set {TUNER} to lora or dora, or delete {TOKEN_ROWS}",
        )


def trained_rows_lie_in_a_part_that_trains(trainable_token_rows: str | None, freeze: list[str]) -> None:
    """The embedding table is of the language model: one of the two keys would be ignored."""
    if trainable_token_rows is not None and "language" in freeze:
        raise ConfigError(
            f"{trainable_token_rows} would train rows of the language model, which {FREEZE} keeps as it is",
            where=TOKEN_ROWS,
            fix=f"take language out of {FREEZE}, or delete {TOKEN_ROWS}",
        )


def some_part_trains(freeze: list[str]) -> None:
    """A model with every part frozen has nothing to learn with."""
    if len(freeze) == MODEL_PARTS:
        raise ConfigError("every part of the model is frozen", where=FREEZE, fix=f"take at least one out of {FREEZE}")


def pixel_limits_are_ordered(min_pixels: int | None, max_pixels: int | None) -> None:
    """The smallest image may not be larger than the largest."""
    if min_pixels is not None and max_pixels is not None and min_pixels > max_pixels:
        raise ConfigError(
            f"{min_pixels} is above {MAX_PIXELS}, which is {max_pixels}",
            where=MIN_PIXELS,
            fix=f"set {MIN_PIXELS} to {max_pixels} or less",
        )


def absent_classes_have_a_place(negative_classes: int, user_prompt: str) -> None:
    """Absent names are asked for in the prompt, where it has a place for names."""
    if negative_classes and CLASSES not in user_prompt:
        raise ConfigError(
            f"{negative_classes} has no effect: {USER_PROMPT} has no place for the names",
            where=NEGATIVE_CLASSES,
            fix=f"write {CLASSES} where they shall stand in {USER_PROMPT}, or delete {NEGATIVE_CLASSES}",
        )


def evaluation_has_data(every_steps: int | None, validation: str | None) -> None:
    """An evaluation interval would be ignored without validation data."""
    if every_steps is not None and validation is None:
        raise ConfigError(
            f"there is nothing to evaluate every {counted(every_steps, 'step')}: {VALIDATION} is not set",
            where=EVALUATE_EVERY,
            fix=f"set {VALIDATION} to a JSONL file, or delete {EVALUATE_EVERY}",
        )


def best_checkpoint_has_data(keep_best: str | None, validation: str | None) -> None:
    """Without validation data nothing is ever the best."""
    if keep_best is not None and validation is None:
        raise ConfigError(
            f"{keep_best} is never known: {VALIDATION} is not set",
            where=KEEP_BEST,
            fix=f"set {VALIDATION} to a JSONL file, or delete {KEEP_BEST}",
        )


def stopping_early_has_a_metric(stop_after: int | None, keep_best: str | None, validation: str | None) -> None:
    """Which evaluation is better is what checkpoint.keep_best says."""
    if stop_after is not None and validation is None:
        raise ConfigError(
            f"there are never {counted(stop_after, 'evaluation')}: {VALIDATION} is not set",
            where=STOP_AFTER,
            fix=f"set {VALIDATION} to a JSONL file, or delete {STOP_AFTER}",
        )
    if stop_after is not None and keep_best is None:
        raise ConfigError(
            f"{stop_after} evaluations without a better one of what? {KEEP_BEST} is not set",
            where=STOP_AFTER,
            fix=f"set {KEEP_BEST} to eval/f1, or delete {STOP_AFTER}",
        )


def vllm_has_servers(rollout_backend: str, servers: list[dict]) -> None:
    """Server mode draws from the servers that the config names."""
    if rollout_backend == "vllm" and not servers:
        raise ConfigError(
            "vllm draws rollouts from servers, and none is named",
            where=BACKEND,
            fix=f"name them in {SERVERS}: [{{base_url: http://127.0.0.1:8000}}], or set {BACKEND} to hf",
        )


def replay_has_run(rollout_backend: str, run: str | None) -> None:
    """Recorded rollouts come from the run that the config names."""
    if rollout_backend == "replay" and run is None:
        raise ConfigError(
            f"replay takes rollouts from a recorded run, and {REPLAY_RUN} names none",
            where=BACKEND,
            fix=f"set {REPLAY_RUN} to the folder of a run with logging.rollouts: true, or set {BACKEND} to hf",
        )


def servers_differ(servers: list[dict]) -> None:
    """A server that is named twice would be counted twice, and two cannot meet at one port."""
    for key in ("base_url", "group_port"):
        seen = [str(server[key]).rstrip("/") for server in servers if server[key] is not None]
        twice = next((value for place, value in enumerate(seen) if value in seen[:place]), None)
        if twice is not None:
            raise ConfigError(f"two entries have the {key} {twice}", where=SERVERS, fix=f"give each its own {key}")


def _decoding_keys(section: str) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for name in ("temperature", "top_p", "top_k"))


RULES = (
    Rule(greedy_decoding_draws_nothing, _decoding_keys(DECODING)),
    Rule(greedy_evaluation_draws_nothing, _decoding_keys(EVALUATION_DECODING)),
    Rule(temperature_can_be_felt, (f"{DECODING}.temperature",)),
    Rule(evaluation_temperature_can_be_felt, (f"{EVALUATION_DECODING}.temperature",)),
    Rule(rollouts_to_choose_from_differ, (BACKEND, BEST_OF, f"{DECODING}.temperature", f"{DECODING}.top_k")),
    Rule(repeated_sequences_have_length_and_number, (NGRAM_SIZE, NGRAM_REPEATS)),
    Rule(only_rewritten_answers_have_an_order, (TARGET, REWRITE_ORDER)),
    Rule(only_appended_objects_have_a_multiplier, (TARGET, DROP_MULTIPLIER)),
    Rule(noise_objects_have_a_score, (CODEC, NOISE)),
    Rule(spurious_objects_stay_where_they_were_said, (CODEC, REWRITE_ORDER, KEEP_SPURIOUS)),
    Rule(answer_fits_length, (MAX_NEW_TOKENS, LENGTH_CAP)),
    Rule(constant_rate_does_not_fall, (SCHEDULER, FINAL_RATE)),
    Rule(offload_needs_zero, (OFFLOAD, ZERO_STAGE)),
    Rule(rows_are_trained_beside_adapters, (TOKEN_ROWS, TUNER)),
    Rule(trained_rows_lie_in_a_part_that_trains, (TOKEN_ROWS, FREEZE)),
    Rule(some_part_trains, (FREEZE,)),
    Rule(pixel_limits_are_ordered, (MIN_PIXELS, MAX_PIXELS)),
    Rule(absent_classes_have_a_place, (NEGATIVE_CLASSES, USER_PROMPT)),
    Rule(evaluation_has_data, (EVALUATE_EVERY, VALIDATION)),
    Rule(best_checkpoint_has_data, (KEEP_BEST, VALIDATION)),
    Rule(stopping_early_has_a_metric, (STOP_AFTER, KEEP_BEST, VALIDATION)),
    Rule(vllm_has_servers, (BACKEND, SERVERS)),
    Rule(servers_differ, (SERVERS,)),
    Rule(replay_has_run, (BACKEND, REPLAY_RUN)),
)


def broken_rules(values: dict, rules: tuple[Rule, ...], faulty: set[KeyPath]) -> Iterator[tuple[Rule, ConfigError]]:
    """The rules that do not hold; one that reads a key which is missing or already faulty is left out.

    Args:
        values: the config with defaults filled in.
        rules: those to apply.
        faulty: keys (and sections) that already have a problem.
    """
    for rule in rules:
        if any(_touches(path, bad) for path in rule.paths for bad in faulty):
            continue
        try:
            rule.check(*(value_at(values, path) for path in rule.paths))
        except ConfigError as error:
            yield rule, error


def _touches(path: KeyPath, faulty: KeyPath) -> bool:
    """Whether the fault is in the key, in a section above it or in an entry below it."""
    shorter = min(len(path), len(faulty))
    return bool(faulty) and path[:shorter] == faulty[:shorter]

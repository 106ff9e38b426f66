"""Cross-field rules of decoding: what a greedy answer leaves nothing to."""

from ds_stage2ab.errors import ConfigError

DECODING = "custom.extra.rollout_matching.decoding"
EVALUATION_DECODING = "evaluation.decoding"
REPLAY = "replay"  # of rollout_backend
BEST_OF = "custom.extra.rollout_matching.best_of"

LOWEST_TEMPERATURE = 1e-3  # below it sampling is practically greedy


def greedy_decoding_draws_nothing(temperature: float, top_p: float, top_k: int) -> None:
    """At temperature 0 the most probable token is taken, and what limits a draw would be ignored."""
    _greedy_draws_nothing(DECODING, temperature, top_p, top_k)


def greedy_evaluation_draws_nothing(temperature: float, top_p: float, top_k: int) -> None:
    """The same of held-out answers."""
    _greedy_draws_nothing(EVALUATION_DECODING, temperature, top_p, top_k)


def _greedy_draws_nothing(section: str, temperature: float, top_p: float, top_k: int) -> None:
    off = {"top_p": (top_p, 1), "top_k": (top_k, 0)}
    limits = [f"{section}.{key} {value}" for key, (value, no_limit) in off.items() if value != no_limit]
    if temperature == 0 and limits:
        raise ConfigError(
            f"{temperature} is greedy, which makes {' and '.join(limits)} meaningless",
            where=f"{section}.temperature",
            fix="set a temperature above 0, or delete the other",
        )


def temperature_can_be_felt(temperature: float) -> None:
    """Logits divided by less would overflow."""
    _can_be_felt(DECODING, temperature)


def evaluation_temperature_can_be_felt(temperature: float) -> None:
    """The same of held-out answers."""
    _can_be_felt(EVALUATION_DECODING, temperature)


def _can_be_felt(section: str, temperature: float) -> None:
    if 0 < temperature < LOWEST_TEMPERATURE:
        key = f"{section}.temperature"
        raise ConfigError(
            f"{temperature} is too close to 0 to compute with",
            where=key,
            fix=f"set {key} to 0 (greedy), or to {LOWEST_TEMPERATURE} or more",
        )


def rollouts_to_choose_from_differ(backend: str, best_of: int, temperature: float, top_k: int) -> None:
    """Greedy answers to one prompt are equal, so the first is the best; a replay's are drawn already."""
    if backend == REPLAY:
        return
    greedy = (("temperature", temperature, temperature == 0, "0.7 or 1"), ("top_k", top_k, top_k == 1, "0"))
    for name, value, is_greedy, other in greedy:
        if best_of > 1 and is_greedy:
            raise ConfigError(
                f"{best_of} rollouts of a sample would all be the same: {DECODING}.{name} is {value:g}",
                where=BEST_OF,
                fix=f"set {DECODING}.{name} to {other}, or {BEST_OF} to 1",
            )

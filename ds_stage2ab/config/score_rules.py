"""Cross-field rules of scored forms: what is not true teaches a score alone."""

from ds_stage2ab.config.sections import GENERATED
from ds_stage2ab.errors import ConfigError

SCORED = ("array_scored", "compact_scored")
"""Values of `data.codec` that write a score behind each box."""
SCORED_FORMS = f"{SCORED[0]} (or {SCORED[1]})"
CODEC, NOISE = "data.codec", "stage2_ab.noise_objects"
REWRITE_ORDER, KEEP_SPURIOUS = "stage2_ab.channel_b.rewrite_order", "stage2_ab.channel_b.keep_spurious"


def noise_objects_have_a_score(codec: str, noise_objects: int) -> None:
    """Without a score nothing of them is taught."""
    if noise_objects and codec not in SCORED:
        raise ConfigError(
            f"{noise_objects} noise objects teach a score, and {CODEC} {codec} has none",
            where=NOISE,
            fix=f"set {CODEC} to {SCORED_FORMS}, or {NOISE} to 0",
        )


def spurious_objects_stay_where_they_were_said(codec: str, rewrite_order: str | None, keep_spurious: bool) -> None:
    """They have no place in the data's order, and without a score nothing of them is taught; `append` keeps them."""
    if keep_spurious and (codec not in SCORED or rewrite_order != GENERATED):
        raise ConfigError(
            f"spurious objects stay in answers in generated order with scores; {CODEC} is {codec},"
            f" {REWRITE_ORDER} is {rewrite_order}",
            where=KEEP_SPURIOUS,
            fix=f"set {KEEP_SPURIOUS} to false, or {CODEC} to {SCORED_FORMS} and {REWRITE_ORDER} to {GENERATED}",
        )

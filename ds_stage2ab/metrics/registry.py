"""Every metric, declared once: its name, unit, reduction, channel and better direction.

A name that is not declared here cannot be logged. `docs/training/METRICS_LOSSES.md` says what each of them means (a
test compares both ways).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Reduction = Literal["mean", "sum", "last", "max"]
"""How the numbers of packs and ranks become one number.

mean: sum / count, both summed over all packs and ranks first (never a mean of means).
sum: the sum over all packs and ranks.
last: one value, the same on every rank, or rank 0's clock.
max: the largest over the ranks.
"""

Channel = Literal["A", "B", "both", "eval"]
"""Which kind of step may emit it; `eval` is a held-out evaluation between steps."""

Better = Literal["higher", "lower", "neither"]
"""The better direction; colours the final table."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One declared metric."""

    name: str
    unit: str
    # "fraction" lies in [0, 1]; "nats" are natural logarithms; "image" is a share of the image's side; "1" has none
    reduction: Reduction
    channel: Channel
    better: Better


DECLARED = (
    Metric("loss/total", "nats", "mean", "both", "lower"),
    Metric("loss/text_ce", "nats", "mean", "both", "lower"),
    Metric("loss/desc_ce", "nats", "mean", "both", "lower"),
    Metric("loss/bbox_smoothl1", "1", "mean", "both", "lower"),
    Metric("loss/bbox_ciou", "1", "mean", "both", "lower"),
    Metric("loss/coord_gate", "nats", "mean", "both", "lower"),
    Metric("loss/coord_soft_ce", "nats", "mean", "both", "lower"),
    Metric("loss/coord_w1", "image", "mean", "both", "lower"),
    Metric("loss/coord_ce", "nats", "mean", "both", "lower"),
    Metric("loss/coord_el1", "image", "mean", "both", "lower"),
    Metric("loss/coord_ehuber", "1", "mean", "both", "lower"),
    Metric("loss/coord_entropy", "nats", "mean", "both", "lower"),
    Metric("loss/score", "nats", "mean", "both", "lower"),
    Metric("coord/mass", "fraction", "mean", "both", "higher"),
    Metric("coord/mean_abs_error_bins", "bins", "mean", "both", "lower"),
    Metric("rollout/count", "rollouts", "sum", "B", "neither"),
    Metric("rollout/resent", "rollouts", "sum", "B", "lower"),
    Metric("rollout/tokens", "tokens", "sum", "B", "neither"),
    Metric("rollout/tokens_per_second", "tokens/s", "last", "B", "higher"),
    Metric("rollout/truncation_rate", "fraction", "mean", "B", "lower"),
    Metric("rollout/repeat_rate", "fraction", "mean", "B", "lower"),
    Metric("rollout/values_dropped_rate", "fraction", "mean", "B", "lower"),
    Metric("rollout/servers", "servers", "mean", "B", "higher"),
    Metric("rollout/servers_lost", "servers", "mean", "B", "lower"),
    Metric("rollout/servers_back", "servers", "mean", "B", "neither"),
    Metric("rollout/probe_gap", "nats/token", "mean", "B", "lower"),
    Metric("rollout/sync_s", "s", "mean", "B", "lower"),
    Metric("rollout/sync_bytes", "bytes", "mean", "B", "neither"),
    Metric("rollout/passes", "passes", "mean", "B", "lower"),
    Metric("rollout/tokens_per_pass", "tokens", "mean", "B", "higher"),
    Metric("rollout/live_slots", "fraction", "mean", "B", "higher"),
    Metric("rollout/padding", "fraction", "mean", "B", "lower"),
    Metric("rollout/draft_acceptance", "fraction", "mean", "B", "higher"),
    Metric("match/precision", "fraction", "mean", "B", "higher"),
    Metric("match/recall", "fraction", "mean", "B", "higher"),
    Metric("match/f1", "fraction", "mean", "B", "higher"),
    Metric("match/iou", "fraction", "mean", "B", "higher"),
    Metric("match/same_desc_rate", "fraction", "mean", "B", "higher"),
    Metric("match/predicted_per_true", "1", "mean", "B", "neither"),
    Metric("match/duplicates_per_answer", "objects", "mean", "B", "lower"),
    Metric("match/early_stop_rate", "fraction", "mean", "B", "lower"),
    Metric("match/late_stop_rate", "fraction", "mean", "B", "lower"),
    Metric("match/not_first_rate", "fraction", "mean", "B", "neither"),
    Metric("match/f1_of_all", "fraction", "mean", "B", "higher"),
    Metric("match/f1_of_best", "fraction", "mean", "B", "higher"),
    Metric("parse/no_json", "fraction", "mean", "B", "lower"),
    Metric("parse/empty_answer", "fraction", "mean", "B", "neither"),
    Metric("parse/ok", "fraction", "mean", "B", "higher"),
    Metric("parse/trailing_garbage", "fraction", "mean", "B", "lower"),
    Metric("parse/malformed", "fraction", "mean", "B", "lower"),
    Metric("parse/truncated_first_object", "fraction", "mean", "B", "lower"),
    Metric("parse/truncated", "fraction", "mean", "B", "lower"),
    Metric("drop/key_invalid", "fraction", "mean", "B", "lower"),
    Metric("drop/missing_desc", "fraction", "mean", "B", "lower"),
    Metric("drop/missing_geom", "fraction", "mean", "B", "lower"),
    Metric("drop/unknown_geom", "fraction", "mean", "B", "lower"),
    Metric("drop/poly_unsupported", "fraction", "mean", "B", "lower"),
    Metric("drop/wrong_arity", "fraction", "mean", "B", "lower"),
    Metric("drop/non_coord_token", "fraction", "mean", "B", "lower"),
    Metric("drop/bbox_invalid", "fraction", "mean", "B", "lower"),
    Metric("drop/missing_score", "fraction", "mean", "B", "lower"),
    Metric("target/matched", "objects", "sum", "B", "higher"),
    Metric("target/missed", "objects", "sum", "B", "lower"),
    Metric("target/spurious", "objects", "sum", "B", "lower"),
    Metric("target/duplicate", "objects", "sum", "B", "lower"),
    Metric("target/renamed", "objects", "sum", "B", "lower"),
    Metric("target/go_on", "tokens", "sum", "B", "neither"),
    Metric("target/stop", "tokens", "sum", "B", "neither"),
    Metric("target/seam_fallback", "rollouts", "sum", "B", "lower"),
    Metric("train/grad_norm", "1", "last", "both", "neither"),
    Metric("train/learning_rate", "1", "last", "both", "neither"),
    Metric("train/samples", "samples", "sum", "both", "neither"),
    Metric("train/skipped_samples", "samples", "sum", "both", "lower"),
    Metric("train/tokens", "tokens", "sum", "both", "neither"),
    Metric("train/tokens_per_second", "tokens/s", "last", "both", "higher"),
    Metric("train/objects", "objects", "sum", "both", "neither"),
    Metric("train/packs", "packs", "sum", "both", "neither"),
    Metric("train/applied", "1", "last", "both", "neither"),
    Metric("time/data_s", "s", "last", "both", "lower"),
    Metric("time/segments_s", "s", "last", "both", "lower"),
    Metric("time/rollout_s", "s", "max", "B", "lower"),
    Metric("time/match_s", "s", "last", "B", "lower"),
    Metric("time/wait_s", "s", "last", "both", "lower"),
    Metric("time/forward_backward_s", "s", "last", "both", "lower"),
    Metric("time/optimizer_s", "s", "last", "both", "lower"),
    Metric("time/servers_idle_s", "s", "last", "B", "lower"),
    Metric("time/learner_idle_s", "s", "last", "B", "lower"),
    Metric("time/step_s", "s", "last", "both", "lower"),
    Metric("eval/ap_by_score", "fraction", "mean", "eval", "higher"),
    Metric("eval/ap50_by_score", "fraction", "mean", "eval", "higher"),
    Metric("eval/ap75_by_score", "fraction", "mean", "eval", "higher"),
    Metric("eval/ap_by_probability", "fraction", "mean", "eval", "higher"),
    Metric("eval/ap50_by_probability", "fraction", "mean", "eval", "higher"),
    Metric("eval/ap75_by_probability", "fraction", "mean", "eval", "higher"),
    Metric("eval/ap_unranked", "fraction", "mean", "eval", "higher"),
    Metric("eval/ap50_unranked", "fraction", "mean", "eval", "higher"),
    Metric("eval/ap75_unranked", "fraction", "mean", "eval", "higher"),
    Metric("eval/lvis_ap_by_score", "fraction", "mean", "eval", "higher"),
    Metric("eval/lvis_ap_by_probability", "fraction", "mean", "eval", "higher"),
    Metric("eval/lvis_ap_unranked", "fraction", "mean", "eval", "higher"),
    Metric("eval/f1", "fraction", "mean", "eval", "higher"),
    Metric("eval/precision", "fraction", "mean", "eval", "higher"),
    Metric("eval/recall", "fraction", "mean", "eval", "higher"),
    Metric("eval/f1_boxes", "fraction", "mean", "eval", "higher"),
    Metric("eval/precision_boxes", "fraction", "mean", "eval", "higher"),
    Metric("eval/recall_boxes", "fraction", "mean", "eval", "higher"),
    Metric("eval/matched_iou", "fraction", "mean", "eval", "higher"),
    Metric("eval/best_f1", "fraction", "mean", "eval", "higher"),
    Metric("eval/best_f1_threshold", "fraction", "mean", "eval", "neither"),
    Metric("eval/calibration_error", "fraction", "mean", "eval", "lower"),
    Metric("eval/above_10_percent", "fraction", "mean", "eval", "neither"),
    Metric("eval/above_30_percent", "fraction", "mean", "eval", "neither"),
    Metric("eval/above_50_percent", "fraction", "mean", "eval", "neither"),
    Metric("eval/above_70_percent", "fraction", "mean", "eval", "neither"),
    Metric("eval/above_90_percent", "fraction", "mean", "eval", "neither"),
    Metric("eval/parse_ok_rate", "fraction", "mean", "eval", "higher"),
    Metric("eval/predicted_per_true", "1", "mean", "eval", "neither"),
    Metric("eval/spurious_per_answer", "objects", "mean", "eval", "lower"),
    Metric("eval/missed_per_answer", "objects", "mean", "eval", "lower"),
    Metric("eval/wrong_names_per_answer", "objects", "mean", "eval", "lower"),
    Metric("eval/early_stop_rate", "fraction", "mean", "eval", "lower"),
    Metric("eval/late_stop_rate", "fraction", "mean", "eval", "lower"),
    Metric("eval/duplicates_per_answer", "objects", "mean", "eval", "lower"),
    Metric("eval/f1_without_duplicates", "fraction", "mean", "eval", "higher"),
    Metric("eval/ap_without_duplicates", "fraction", "mean", "eval", "higher"),
    Metric("eval/truncation_rate", "fraction", "mean", "eval", "lower"),
    Metric("eval/repeat_rate", "fraction", "mean", "eval", "lower"),
    Metric("eval/values_dropped_rate", "fraction", "mean", "eval", "lower"),
    Metric("eval/drop_key_invalid", "fraction", "mean", "eval", "lower"),
    Metric("eval/drop_missing_desc", "fraction", "mean", "eval", "lower"),
    Metric("eval/drop_missing_geom", "fraction", "mean", "eval", "lower"),
    Metric("eval/drop_unknown_geom", "fraction", "mean", "eval", "lower"),
    Metric("eval/drop_poly_unsupported", "fraction", "mean", "eval", "lower"),
    Metric("eval/drop_wrong_arity", "fraction", "mean", "eval", "lower"),
    Metric("eval/drop_non_coord_token", "fraction", "mean", "eval", "lower"),
    Metric("eval/drop_bbox_invalid", "fraction", "mean", "eval", "lower"),
    Metric("eval/drop_missing_score", "fraction", "mean", "eval", "lower"),
    Metric("eval/coord_mass", "fraction", "mean", "eval", "higher"),
    Metric("eval/samples", "samples", "sum", "eval", "neither"),
    Metric("eval/seconds", "s", "max", "eval", "lower"),
    Metric("eval/generated_tokens_per_second", "tokens/s", "mean", "eval", "higher"),
)

METRICS: Mapping[str, Metric] = {metric.name: metric for metric in DECLARED}
"""Name -> declaration, in the order in which tables show them."""


def reduce_terms(terms: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """(sum, count) of each term over all packs and ranks -> its value; terms with count 0 are left out.

    Args:
        terms: metric name -> (sum, count); only metrics reduced by `mean` or `sum` can be terms.
    """
    values = {}
    for name, (total, count) in terms.items():
        assert name in METRICS, f"metric {name!r} is not declared in metrics/registry.py"
        reduction = METRICS[name].reduction
        assert reduction in ("mean", "sum"), f"metric {name!r} is reduced by {reduction!r}, it cannot be a term"
        if count != 0:
            values[name] = total / count if reduction == "mean" else total
    return values


def check_channel(names: Mapping[str, float], channel: str) -> None:
    """Assert that each name is declared and that a step of `channel` ("A", "B" or "eval") may emit it."""
    for name in names:
        assert name in METRICS, f"metric {name!r} is not declared in metrics/registry.py"
        declared = METRICS[name].channel
        allowed = declared == channel or (declared == "both" and channel in ("A", "B"))
        assert allowed, f"metric {name!r} belongs to channel {declared!r}, it was emitted by {channel!r}"

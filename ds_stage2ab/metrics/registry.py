"""Every metric, declared once: its name, unit, reduction, channel and meaning.

A name that is not declared here cannot be logged. `docs/training/METRICS_LOSSES.md` has an entry for
each of them (a test compares both ways).
"""

from __future__ import annotations

from collections.abc import Mapping

from ds_stage2ab.metrics.declared import Metric, metric
from ds_stage2ab.metrics.evaluation_metrics import EVALUATION

# fmt: off
LOSS = (
    metric("loss/total", "nats", "mean", "both", "lower",
           "The loss of the step: the weighted sum of all terms, averaged over the raw samples of the step."),
    metric("loss/text_ce", "nats", "mean", "both", "lower",
           "Cross-entropy of the supervised tokens, their weighted mean in each sample, averaged over samples."),
    metric("loss/desc_ce", "nats", "mean", "both", "lower",
           "Cross-entropy of description tokens alone, averaged over tokens; a report, already part of loss/text_ce."),
    metric("loss/bbox_smoothl1", "1", "mean", "both", "lower",
           "Smooth L1 distance between the expected and the true coordinates of a box, as shares of the image side."),
    metric("loss/bbox_ciou", "1", "mean", "both", "lower",
           "Complete-IoU loss of the expected box against the true box."),
    metric("loss/coord_gate", "nats", "mean", "both", "lower",
           "Minus the logarithm of the probability that a slot holds any coordinate token at all."),
    metric("loss/coord_soft_ce", "nats", "mean", "both", "lower",
           "Cross-entropy of a slot's bins against a narrow Gaussian around the true bin."),
    metric("loss/coord_w1", "image", "mean", "both", "lower",
           "Wasserstein-1 distance between a slot's distribution over bins and the narrow Gaussian."),
    metric("loss/coord_ce", "nats", "mean", "both", "lower",
           "Cross-entropy of a slot's bins against the true bin alone."),
    metric("loss/coord_el1", "image", "mean", "both", "lower",
           "Distance from the true coordinate, averaged over a slot's distribution."),
    metric("loss/coord_ehuber", "1", "mean", "both", "lower",
           "Huber distance from the true coordinate, averaged over a slot's distribution."),
    metric("loss/coord_entropy", "nats", "mean", "both", "lower",
           "Entropy of a slot's distribution over bins; 0 means one certain bin."),
    metric("loss/score", "nats", "mean", "both", "lower",
           "The score behind each box: cross entropy with what it should have been, and of its token."),
)

COORDINATES = (
    metric("coord/mass", "fraction", "mean", "both", "higher",
           "Probability that the model gives to the 1,000 coordinate tokens together, averaged over slots."),
    metric("coord/mean_abs_error_bins", "bins", "mean", "both", "lower",
           "Distance between a slot's expected bin and its true bin (0 to 999), averaged over slots."),
)

ROLLOUT = (
    metric("rollout/count", "rollouts", "sum", "B", "neither",
           "Rollouts of the step over all ranks: best_of for each sample that was not skipped."),
    metric("rollout/resent", "rollouts", "sum", "B", "lower",
           "Times that a whole request was sent to another rollout server, because one had failed it."),
    metric("rollout/tokens", "tokens", "sum", "B", "neither",
           "Generated tokens of the step over all ranks, stop tokens not counted."),
    metric("rollout/tokens_per_second", "tokens/s", "last", "B", "higher",
           "rollout/tokens divided by time/rollout_s."),
    metric("rollout/truncation_rate", "fraction", "mean", "B", "lower",
           "Share of rollouts that reached the token limit before their end."),
    metric("rollout/repeat_rate", "fraction", "mean", "B", "lower",
           "Share of rollouts that the repetition guard ended."),
    metric("rollout/values_dropped_rate", "fraction", "mean", "B", "lower",
           "Share of complete values that were no valid object."),
    metric("rollout/servers", "servers", "mean", "B", "higher",
           "Rollout servers that served when the step's rollouts had come."),
    metric("rollout/servers_lost", "servers", "mean", "B", "lower",
           "Rollout servers that ceased to serve since the B step before."),
    metric("rollout/servers_back", "servers", "mean", "B", "neither",
           "Rollout servers that began to serve since the B step before, again or for the first time."),
    metric("rollout/probe_gap", "nats/token", "mean", "B", "lower",
           "Rollout servers alone: how far log-probabilities of the same tokens differ between server and learner."),
    metric("rollout/sync_s", "s", "mean", "B", "lower",
           "Rollout servers alone: wall time of the last transfer of weights to all of them."),
    metric("rollout/sync_bytes", "bytes", "mean", "B", "neither",
           "Rollout servers alone: what the last transfer of weights brought to each of them."),
    metric("rollout/passes", "passes", "mean", "B", "lower",
           "Rollouts by the learner alone: forward passes in which a rank has decoded the rollouts of a micro-step."),
    metric("rollout/tokens_per_pass", "tokens", "mean", "B", "higher",
           "Rollouts by the learner alone: tokens, stops included, that an answer has gained by each of its passes."),
    metric("rollout/live_slots", "fraction", "mean", "B", "higher",
           "Rollouts by the learner alone: rows of all passes divided by decode_batch_size for each of them."),
    metric("rollout/padding", "fraction", "mean", "B", "lower",
           "Rollouts by the learner alone: share of the keys read by attention that lay beyond the end of their row."),
    metric("rollout/draft_acceptance", "fraction", "mean", "B", "higher",
           "Rollouts by the learner alone: share of the drafted tokens that were what the model chose."),
)

MATCH = (
    metric("match/precision", "fraction", "mean", "B", "higher",
           "Matched objects divided by predicted ones over the step, by boxes alone and training's IoU gate."),
    metric("match/recall", "fraction", "mean", "B", "higher",
           "Matched objects divided by true ones over the step; the rest was missed."),
    metric("match/f1", "fraction", "mean", "B", "higher", "2 matched / (predicted + true) over the step."),
    metric("match/iou", "fraction", "mean", "B", "higher", "Mean IoU of the matched pairs."),
    metric("match/same_desc_rate", "fraction", "mean", "B", "higher",
           "Share of matched pairs whose descriptions agree (stripped, lower case, Unicode NFC)."),
    metric("match/predicted_per_true", "1", "mean", "B", "neither",
           "Predicted objects divided by true objects over the step; 1 is the right number."),
    metric("match/duplicates_per_answer", "objects", "mean", "B", "lower",
           "Predicted objects per answer whose box repeats an earlier one (IoU above 0.9), whatever their names."),
    metric("match/early_stop_rate", "fraction", "mean", "B", "lower",
           "Share of answers that the model ended itself with fewer objects than are true."),
    metric("match/late_stop_rate", "fraction", "mean", "B", "lower",
           "Share of answers with more objects than are true."),
    metric("match/not_first_rate", "fraction", "mean", "B", "neither",
           "best_of above 1 alone: share of samples whose best rollout, which is taught, was not the first."),
    metric("match/f1_of_all", "fraction", "mean", "B", "higher",
           "best_of above 1 alone: F1 of each rollout, averaged over all of them."),
    metric("match/f1_of_best", "fraction", "mean", "B", "higher",
           "best_of above 1 alone: F1 of the best rollout of each sample, averaged over samples."),
)

PARSE = (
    metric("parse/no_json", "fraction", "mean", "B", "lower",
           "Share of rollouts whose opening could not be read."),
    metric("parse/empty_answer", "fraction", "mean", "B", "neither",
           "Share of rollouts that were closed without any value."),
    metric("parse/ok", "fraction", "mean", "B", "higher",
           "Share of rollouts that were closed, with nothing after the close."),
    metric("parse/trailing_garbage", "fraction", "mean", "B", "lower",
           "Share of rollouts that were closed and went on."),
    metric("parse/malformed", "fraction", "mean", "B", "lower",
           "Share of rollouts ended by a byte or token that cannot continue the grammar."),
    metric("parse/truncated_first_object", "fraction", "mean", "B", "lower",
           "Share of rollouts that ended before their first value was complete."),
    metric("parse/truncated", "fraction", "mean", "B", "lower",
           "Share of rollouts that ended after a complete value, before the close."),
    metric("drop/key_invalid", "fraction", "mean", "B", "lower",
           "Share of complete values dropped: no object, a key twice, or a foreign key."),
    metric("drop/missing_desc", "fraction", "mean", "B", "lower",
           "Share of complete values dropped: no description, or one that is no text or blank."),
    metric("drop/missing_geom", "fraction", "mean", "B", "lower",
           "Share of complete values dropped: no geometry at all."),
    metric("drop/unknown_geom", "fraction", "mean", "B", "lower",
           "Share of complete values dropped: a geometry of another kind."),
    metric("drop/poly_unsupported", "fraction", "mean", "B", "lower", "Share of complete values dropped: a polygon."),
    metric("drop/wrong_arity", "fraction", "mean", "B", "lower",
           "Share of complete values dropped: the box is no list of four."),
    metric("drop/non_coord_token", "fraction", "mean", "B", "lower",
           "Share of complete values dropped: one of the four is no coordinate token."),
    metric("drop/bbox_invalid", "fraction", "mean", "B", "lower",
           "Share of complete values dropped: the box has no width or no height."),
    metric("drop/missing_score", "fraction", "mean", "B", "lower",
           "Share of complete values dropped: no score, or one that is no coordinate token (scored forms alone)."),
)

TARGET = (
    metric("target/matched", "objects", "sum", "B", "higher",
           "True objects that were said: their targets stand at the coordinates that the model wrote."),
    metric("target/missed", "objects", "sum", "B", "lower",
           "True objects that were not said: put in (rewrite) or appended (append)."),
    metric("target/spurious", "objects", "sum", "B", "lower",
           "Objects that were said and overlap no true one: left out (rewrite) or without weight (append)."),
    metric("target/duplicate", "objects", "sum", "B", "lower",
           "Objects that were said and overlap a true one that another stands for: treated as spurious ones are."),
    metric("target/renamed", "objects", "sum", "B", "lower",
           "Matched objects of another description: taught the true one (rewrite) or none (append)."),
    metric("target/go_on", "tokens", "sum", "B", "neither",
           "Supervised tokens that decide to say another object."),
    metric("target/stop", "tokens", "sum", "B", "neither",
           "Supervised tokens that decide to say no other object: one for each rollout."),
    metric("target/seam_fallback", "rollouts", "sum", "B", "lower",
           "Rollouts whose end and what is appended could not be encoded in one call; always 0 with rewrite."),
)

TRAIN = (
    metric("train/grad_norm", "1", "last", "both", "neither",
           "L2 norm of the whole gradient of the step before clipping."),
    metric("train/learning_rate", "1", "last", "both", "neither",
           "Learning rate that the step used."),
    metric("train/samples", "samples", "sum", "both", "neither",
           "Raw samples of the step over all ranks, skipped ones included; equals the effective batch size."),
    metric("train/skipped_samples", "samples", "sum", "both", "lower",
           "Raw samples of the step that contributed nothing."),
    metric("train/tokens", "tokens", "sum", "both", "neither",
           "Tokens of all packs of the step over all ranks, prompts and images included."),
    metric("train/tokens_per_second", "tokens/s", "last", "both", "higher",
           "train/tokens divided by time/step_s."),
    metric("train/objects", "objects", "sum", "both", "neither",
           "Objects whose boxes were supervised in the step over all ranks; each true object of its samples once."),
    metric("train/packs", "packs", "sum", "both", "neither",
           "Packs that were trained on in the step over all ranks, dummy packs not counted."),
    metric("train/applied", "1", "last", "both", "neither",
           "1 if the optimizer changed the weights, 0 if the step was refused as not finite."),
)

TIME = (
    metric("time/data_s", "s", "last", "both", "lower",
           "Wall time of the step spent on reading and encoding samples, on rank 0."),
    metric("time/segments_s", "s", "last", "both", "lower",
           "Wall time of turning the step's samples into segments and packs, rollouts and matching not counted, on"
           " rank 0."),
    metric("time/rollout_s", "s", "max", "B", "lower",
           "Wall time of drawing the step's rollouts, of the slowest rank."),
    metric("time/match_s", "s", "last", "B", "lower",
           "Wall time of reading the step's rollouts, matching them and building their targets, on rank 0."),
    metric("time/wait_s", "s", "last", "both", "lower",
           "Wall time that rank 0 waited for the segments of slower ranks (in a B step: for their rollouts)."),
    metric("time/forward_backward_s", "s", "last", "both", "lower",
           "Wall time of the forward and backward passes of the step, on rank 0."),
    metric("time/optimizer_s", "s", "last", "both", "lower",
           "Wall time of clipping and the weight update, on rank 0."),
    metric("time/servers_idle_s", "s", "last", "B", "lower",
           "Rollout servers alone: wall time of the step in which they had no requests, the mean of all servers."),
    metric("time/learner_idle_s", "s", "last", "B", "lower",
           "Rollout servers alone: wall time of the step in which rank 0 waited for rollouts, transfers or ranks."),
    metric("time/step_s", "s", "last", "both", "lower",
           "Wall time of the whole step, on rank 0."),
)
# fmt: on

METRICS: Mapping[str, Metric] = dict(
    LOSS + COORDINATES + ROLLOUT + MATCH + PARSE + TARGET + TRAIN + TIME + EVALUATION
)
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

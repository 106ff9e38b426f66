"""Warnings about valid but unlikely settings, for `ds-stage2ab plan` and the opening lines of a run."""

from fractions import Fraction

from ds_stage2ab.config.batch import counted
from ds_stage2ab.config.deepspeed import runnable_zero_stage
from ds_stage2ab.config.sections import Config, RolloutMatchingSection
from ds_stage2ab.config.servers import INFER_TIMEOUT, SERVERS, is_loopback
from ds_stage2ab.detector_file import differences
from ds_stage2ab.plan import RunPlan, rollout_timeout_s


def run_warnings(config: Config, plan: RunPlan) -> tuple[str, ...]:
    """The warnings of a run with this plan, one line each.

    Raises:
        EnvironmentFault: the checkpoint's `detector.json` is damaged.
    """
    rollouts = config.rollout_matching
    _, stage_warnings = runnable_zero_stage(config.model.precision, config.deepspeed.zero_stage)
    return (
        *stage_warnings,
        *_warmup_warnings(config.training.warmup_steps, plan.total_steps),
        *_ratio_warnings(plan.b_ratio, plan.total_steps),
        *differences(config, config.model.path),
        *_server_warnings(rollouts),
        *(_timeout_warnings(rollouts, config.deepspeed.collective_timeout_s) if plan.learners > 1 else ()),
    )


def _warmup_warnings(warmup_steps: int, total_steps: int | None) -> tuple[str, ...]:
    if total_steps is None or warmup_steps < total_steps:
        return ()
    run = counted(total_steps, "step")
    return (f"training.warmup_steps is {warmup_steps} and the run has {run}: the learning rate rises to the end",)


def _ratio_warnings(b_ratio: Fraction, total_steps: int | None) -> tuple[str, ...]:
    if total_steps is None or b_ratio == 0 or total_steps * b_ratio >= 1:
        return ()
    share, run = f"stage2_ab.schedule.b_ratio is {float(b_ratio):g}", counted(total_steps, "step")
    return (f"{share} and the run has {run}: none of them trains Channel B",)


def _server_warnings(rollouts: RolloutMatchingSection) -> tuple[str, ...]:
    """vLLM's `--api-key` only protects the /v1 routes."""
    servers = rollouts.vllm.server.servers if rollouts.rollout_backend == "vllm" else ()
    reached = [server.base_url for server in servers if not is_loopback(server.base_url)]
    if not reached:
        return ()
    warning = (
        f"{SERVERS}: any client that reaches {', '.join(reached)} can pause it and replace its weights, also where"
        " it has an --api-key: let only the learners reach it"
    )
    return (warning,)


def _timeout_warnings(rollouts: RolloutMatchingSection, collective_timeout_s: float) -> tuple[str, ...]:
    """A request to a server that hangs is sent to another one, so a rank may wait for both."""
    if rollouts.rollout_backend != "vllm":
        return ()
    one = rollout_timeout_s(rollouts.vllm.server.infer_timeout_s, rollouts.max_new_tokens)
    longest = one * min(len(rollouts.vllm.server.servers), 2)
    if longest < collective_timeout_s:
        return ()
    warning = (
        f"a rank waits up to {longest:g} s for a rollout when a server hangs, and the others {collective_timeout_s:g} s"
        f" for the rank: they would give up first, without a checkpoint; set {INFER_TIMEOUT} lower, or"
        " deepspeed.collective_timeout_s higher"
    )
    return (warning,)

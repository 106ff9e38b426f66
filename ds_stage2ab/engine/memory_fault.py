"""Out-of-memory errors that name what did not fit, and the config keys that reduce it."""

from collections.abc import Iterator
from contextlib import contextmanager

from ds_stage2ab.errors import EnvironmentFault, LocalFault
from ds_stage2ab.plan import RunPlan
from ds_stage2ab.runtime.memory import is_out_of_memory

SMALLER_PACKS = (
    "set training.global_max_length lower (data.max_pixels too, if a single sample is as long as a pack),"
    " or model.gradient_checkpointing to true, or deepspeed.zero_stage higher;"
    " none of them changes what a step learns"
)
SMALLER_ROLLOUTS = (
    "where the learner draws the rollouts (rollout_backend: hf), set custom.extra.rollout_matching.decode_batch_size"
    " lower, which changes no draw but for rounding, or custom.extra.rollout_matching.max_new_tokens;"
    " or data.max_pixels lower; or deepspeed.zero_stage to 2 (3 takes a whole copy of the weights for rollouts)"
)
SMALLER_UPDATE = (
    "set deepspeed.zero_stage higher, or deepspeed.offload_optimizer to cpu (stage 1 or more);"
    " neither changes what a step learns"
)


@contextmanager
def memory_explained(
    what: str, plan: RunPlan, *, fix: str, fault: type[EnvironmentFault] = LocalFault
) -> Iterator[None]:
    """Converts an out-of-memory error of the block to a fault with a remedy.

    Nothing is reduced automatically: the effective batch size is the user's.

    Args:
        what: `rank 1 is out of memory in step 7, in a pack of 8100 tokens`.
        fix: the keys that reduce it.
        fault: what is raised; inside `World.raise_together` no `LocalFault`, so that it is printed once.

    Raises:
        EnvironmentFault: the device or the host has no memory left.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        said = f", {error}" if isinstance(error, MemoryError) and str(error) else ""
        raise fault(
            f"{what}{said} (packs hold up to {plan.global_max_length} tokens; {plan.batch_sentence};"
            f" ZeRO stage {plan.zero_stage})",
            fix=fix,
        ) from error

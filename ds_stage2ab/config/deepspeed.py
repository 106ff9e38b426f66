"""DeepSpeed's configuration, generated from typed sections: one source of batch arithmetic. No torch."""

from ds_stage2ab.config.batch import BatchShape
from ds_stage2ab.config.sections import NO_OFFLOAD, DeepSpeedSection, ModelSection

GRADIENT_DTYPE = "fp32"  # of sums over the packs and the ranks
NEVER_PRINT = 2**31 - 1  # steps between DeepSpeed's own progress lines


def runnable_zero_stage(precision: str, stage: int) -> tuple[int, tuple[str, ...]]:
    """(the ZeRO stage to run, warnings).

    DeepSpeed's bf16 optimizer without ZeRO makes one update with zero gradients when it is built, which moves
    Adam's step count and decays the weights once; stage 1 does not, and gives the same numbers as 2 and 3.
    """
    if precision == "bf16" and stage == 0:
        warning = (
            "deepspeed.zero_stage 0 with model.precision bf16 is run as stage 1: DeepSpeed's own bf16 optimizer"
            " makes an extra update at the start; set deepspeed.zero_stage to 1 to say so yourself"
        )
        return 1, (warning,)
    return stage, ()


def deepspeed_config(shape: BatchShape, model: ModelSection, section: DeepSpeedSection, zero_stage: int) -> dict:
    """DeepSpeed's dictionary. Clipping is always written: when the key is absent, DeepSpeed clips at 1.0."""
    return {
        "train_batch_size": shape.effective_batch_size,
        "train_micro_batch_size_per_gpu": shape.per_device,
        "gradient_accumulation_steps": shape.accumulation_steps,
        "gradient_clipping": section.gradient_clipping,
        "zero_optimization": {"stage": zero_stage, **_offload(section.offload_optimizer)},
        # Keep torch's optimizer when its state is offloaded: DeepSpeed's own gives other results.
        "zero_force_ds_cpu_optimizer": False,
        # Otherwise ZeRO refuses torch's plain SGD.
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": model.precision == "bf16"},
        # Otherwise gradients are added up, over packs and over ranks, in the precision of the weights.
        "data_types": {"grad_accum_dtype": GRADIENT_DTYPE},
        "communication_data_type": GRADIENT_DTYPE,
        "fp16": {"enabled": False},
        "steps_per_print": NEVER_PRINT,
        "wall_clock_breakdown": False,
    }


def _offload(offload_optimizer: str) -> dict:
    """Without `pin_memory`: it only helps copies to another device."""
    return {} if offload_optimizer == NO_OFFLOAD else {"offload_optimizer": {"device": offload_optimizer}}

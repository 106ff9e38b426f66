"""Checkpoint folder -> model, tokenizer, image processor, and the DeepSpeed engine around the objective."""

import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import logger as deepspeed_logger
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration
from transformers.utils import logging as transformers_logging

from ds_stage2ab.config.sections import ModelSection, TrainingSection
from ds_stage2ab.errors import EnvironmentFault

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
"""Longest wait of a rank for the others; DeepSpeed's own default is 30 minutes."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A loaded Hugging Face folder."""

    folder: Path
    model: nn.Module
    tokenizer: Any
    image_processor: Any


def quieten() -> None:
    """Keep the libraries' progress bars and notes out of the run's own output; their errors stay."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    deepspeed_logger.setLevel(logging.ERROR)
    # torch tells callers of its collectives of new names; the caller is DeepSpeed.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")


def start_process_group() -> str:
    """Join the learner ranks; returns this rank's device name."""
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        # DeepSpeed would compile an operator here that only its inference uses, and fail without a compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        share_cores()
    deepspeed.init_distributed(
        dist_backend=accelerator.communication_backend_name(), timeout=COLLECTIVE_TIMEOUT, verbose=False
    )
    return accelerator.current_device_name()


def share_cores() -> None:
    """Divide the CPU's cores among the ranks of this machine, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        local_ranks = int(os.environ["LOCAL_SIZE"]) if "LOCAL_SIZE" in os.environ else 1
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_ranks))


def load_checkpoint(section: ModelSection, *, min_pixels: int | None, max_pixels: int | None) -> Checkpoint:
    """Load a Qwen3-VL folder in eval mode, on the CPU, in the precision of the config.

    Args:
        section: `model` of the config.
        min_pixels: smallest image area that is not enlarged, pixels; None keeps the checkpoint's own.
        max_pixels: largest image area that is not reduced, pixels; None keeps the checkpoint's own.

    Raises:
        EnvironmentFault: the folder is missing or holds no such model.
    """
    folder = Path(section.path)
    if not (folder / "config.json").is_file():
        raise EnvironmentFault(
            "no Hugging Face checkpoint here (config.json is missing)",
            where=str(folder),
            fix="set model.path to the folder of a stage-1 checkpoint",
        )
    size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    limits = {name: value for name, value in size.items() if value is not None}
    try:
        model = Qwen3VLForConditionalGeneration.from_pretrained(
            folder, dtype=DTYPES[section.precision], attn_implementation=section.attn_implementation
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
        # By name: the automatic choice differs with torchvision, and so would the pixels.
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    except (OSError, ValueError, ImportError) as error:
        raise EnvironmentFault(
            f"the checkpoint cannot be loaded: {error}",
            where=str(folder),
            fix="check that model.path is a Qwen3-VL folder with its tokenizer and preprocessor_config.json",
        ) from error
    if limits:
        image_processor.size = {**dict(image_processor.size), **limits}
    if section.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return Checkpoint(folder=folder, model=model, tokenizer=tokenizer, image_processor=image_processor)


def freeze_parts(model: nn.Module, parts: tuple[str, ...]) -> None:
    """Take the named parts out of training: `vision` (tower), `aligner` (mergers), `language` (with its head)."""
    tower = model.model.visual
    aligner = [*tower.merger.parameters(), *tower.deepstack_merger_list.parameters()]
    in_aligner = {id(parameter) for parameter in aligner}
    members = {
        "vision": [parameter for parameter in tower.parameters() if id(parameter) not in in_aligner],
        "aligner": aligner,
        "language": [*model.model.language_model.parameters(), *model.lm_head.parameters()],
    }
    for part in parts:
        for parameter in members[part]:
            parameter.requires_grad_(False)


def position_index(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The model's own rotary positions of one sample, with the text row that marks where it starts."""

    def positions(input_ids: Tensor, image_grid_thw: Tensor) -> Tensor:
        is_image = (input_ids == model.config.image_token_id).int()
        thw, _ = model.model.get_rope_index(
            input_ids[None], mm_token_type_ids=is_image[None], image_grid_thw=image_grid_thw
        )
        return torch.cat([torch.arange(len(input_ids))[None], thw[:, 0]])

    return positions


def build_optimizer(objective: nn.Module, section: TrainingSection) -> torch.optim.Optimizer:
    """Plain PyTorch optimizer; weight decay on matrices only (norms and biases have one axis)."""
    trainable = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": section.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if section.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=section.learning_rate)
    betas = (section.adam_beta1, section.adam_beta2)
    return torch.optim.AdamW(groups, lr=section.learning_rate, betas=betas, eps=section.adam_epsilon)


def build_engine(
    objective: nn.Module, optimizer: torch.optim.Optimizer, deepspeed_config: dict[str, Any]
) -> deepspeed.DeepSpeedEngine:
    """Wrap the objective; the configuration is the plan's, the learning rate stays ours."""
    engine, *_ = deepspeed.initialize(model=objective, optimizer=optimizer, config=deepspeed_config)
    return engine

"""Checkpoint folder -> model, tokenizer, image processor, and the DeepSpeed engine around the objective."""

import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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

from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.config.sections import ModelSection, TrainingSection
from ds_stage2ab.errors import EnvironmentFault, Stage2Error
from ds_stage2ab.losses.attention import use_segments
from ds_stage2ab.model_folder.checks import check_folder, warnings_of
from ds_stage2ab.model_folder.images import image_limits
from ds_stage2ab.model_folder.read import ModelFolder

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

SOME_TEXT = "a cat"
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME")
"""Variables that name the network interface by which ranks talk."""

@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A loaded Hugging Face folder."""

    folder: Path
    model: nn.Module
    tokenizer: Any
    image_processor: Any
    warnings: tuple[str, ...]
    # what is odd about the folder


def quieten() -> None:
    """Silence the libraries' progress bars and notes; their errors stay."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    deepspeed_logger.setLevel(logging.ERROR)
    # torch warns callers of its collectives of new names; the caller is DeepSpeed.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")


def start_process_group(collective_timeout_s: float) -> str:
    """Join the learner ranks; returns this rank's device name.

    Args:
        collective_timeout_s: longest wait of a rank for the others, seconds.

    Raises:
        EnvironmentFault: the ranks cannot reach each other.
    """
    accelerator = get_accelerator()
    local_rank = int(os.environ["LOCAL_RANK"])
    # Before anything queries the current device: the launcher makes every device visible to every rank.
    accelerator.set_device(local_rank)
    if accelerator.device_name() == "cpu":
        # DeepSpeed would compile an operator here that only its inference uses, and fail without a compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    share_cores()
    backend = accelerator.communication_backend_name()
    try:
        deepspeed.init_distributed(
            dist_backend=backend, timeout=timedelta(seconds=collective_timeout_s), verbose=False
        )
    except RuntimeError as error:
        raise EnvironmentFault(
            f"the ranks cannot meet: {error}",
            where=f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
            fix=meeting_remedy(str(error), os.environ),
        ) from error
    return accelerator.device_name(local_rank)


def meeting_remedy(why: str, environment: Mapping[str, str]) -> str:
    """What to do when ranks cannot meet, by its cause.

    Args:
        why: torch's message.
        environment: variables of this process, which may be left from another machine.
    """
    if "EADDRINUSE" in why or "address already in use" in why:
        return "another program uses this port: give the launcher another one: deepspeed --master_port 29501 ..."
    chosen = [f"{name}={environment[name]}" for name in INTERFACES if name in environment]
    if "Unable to find address for" in why or (chosen and "interface" in why.lower()):
        has = ", ".join(name for _, name in socket.if_nameindex())
        names = " and ".join(chosen) or f"one of {', '.join(INTERFACES)}"
        return f"unset {names}, which names a network interface, or set it to one of this machine: {has}"
    address = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
    return (
        f"see that every machine reaches {address} (MASTER_ADDR, MASTER_PORT; for the launcher --master_addr,"
        " --master_port), and look for the words of a rank that failed first"
    )


def share_cores() -> None:
    """Divide the CPU's cores among the ranks of this machine, unless OMP_NUM_THREADS says otherwise.

    Ranks on GPUs as well: each encodes its samples, cuts its rollouts and updates what is offloaded on the CPU.
    """
    if "OMP_NUM_THREADS" not in os.environ and "LOCAL_SIZE" in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["LOCAL_SIZE"])))


def load_checkpoint(section: ModelSection, *, min_pixels: int | None, max_pixels: int | None) -> Checkpoint:
    """Load a Qwen3-VL folder, on the CPU, in the precision of the config.

    Args:
        section: `model` of the config.
        min_pixels: smallest image area that is not enlarged, pixels; None keeps the checkpoint's own.
        max_pixels: largest image area that is not reduced, pixels; None keeps the checkpoint's own.

    Raises:
        EnvironmentFault: the folder is missing, damaged, incomplete, contradicts itself, or holds no such model.
        ConfigError: a pixel limit crosses the checkpoint's other one.
    """
    folder = check_folder(section.path)
    tokenizer, image_processor = load_processors(folder, min_pixels=min_pixels, max_pixels=max_pixels)
    with _explained(folder.path):
        model = _load_model(section, is_tied=folder.is_tied)
    if section.attn_implementation == "sdpa":
        use_segments(model)
    if section.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return Checkpoint(
        folder=folder.path,
        model=model,
        tokenizer=tokenizer,
        image_processor=image_processor,
        warnings=warnings_of(folder),
    )


def load_processors(folder: ModelFolder, *, min_pixels: int | None, max_pixels: int | None) -> tuple[Any, Any]:
    """(tokenizer, image processor) of a folder, with these pixel limits.

    Raises:
        EnvironmentFault: one of them is missing or damaged.
        ConfigError: a pixel limit crosses the checkpoint's other one.
    """
    image_limits(folder.image_settings, min_pixels=min_pixels, max_pixels=max_pixels)
    with _explained(folder.path):
        tokenizer = AutoTokenizer.from_pretrained(folder.path)
        tokenizer.encode(SOME_TEXT)  # a wrong value in its config shows in use alone
        # By name: the automatic choice differs with torchvision, and so would the pixels.
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder.path)
    if folder.older_template:
        tokenizer.chat_template = folder.older_template
    size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    changed = {name: value for name, value in size.items() if value is not None}
    image_processor.size = {**dict(image_processor.size), **changed}
    return tokenizer, image_processor


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except (Stage2Error, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # each of the libraries raises its own, tokenizers a panic of Rust
        raise EnvironmentFault(
            f"the checkpoint cannot be loaded: {error}",
            where=str(folder),
            fix="check that model.path is a whole Qwen3-VL folder with its tokenizer and image processor",
        ) from error


def _load_model(section: ModelSection, *, is_tied: bool) -> nn.Module:
    """Load a model, refusing a folder whose weights do not fit: transformers initialises missing ones randomly."""
    model, report = Qwen3VLForConditionalGeneration.from_pretrained(
        section.path,
        dtype=DTYPES[section.precision],
        attn_implementation=section.attn_implementation,
        tie_word_embeddings=is_tied,
        output_loading_info=True,
    )
    faults = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if faults:
        told = "; ".join(f"{kind}: {names[0]} and {len(names) - 1} more" for kind, names in faults.items())
        raise EnvironmentFault(
            f"the weights are not those of a Qwen3-VL of this config.json ({told})",
            where=str(section.path),
            fix="take the whole folder of the checkpoint, from one source",
        )
    return model


def embedding_holds_coordinates(checkpoint: Checkpoint, vocabulary: Vocabulary) -> None:
    """Refuse a folder whose tokenizer was extended but whose embedding was not.

    Raises:
        EnvironmentFault: a coordinate token has no embedding row.
    """
    rows = checkpoint.model.get_input_embeddings().num_embeddings
    last = max(vocabulary.coordinate_ids)
    if last >= rows:
        raise EnvironmentFault(
            f"the tokenizer has coordinate tokens up to id {last}, the embedding has {rows} rows",
            where=str(checkpoint.folder),
            fix="run `ds-stage2ab add-coord-tokens SRC DST` on the checkpoint without them, and set model.path to DST",
        )


def position_index(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The model's rotary positions of one sample, after a text row 0..T-1 that marks its start."""

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
    """Wrap the objective in a DeepSpeed engine; the learning rate is not DeepSpeed's."""
    engine, *_ = deepspeed.initialize(model=objective, optimizer=optimizer, config=deepspeed_config)
    engine.train()  # from_pretrained leaves eval mode, in which gradient checkpointing silently does nothing
    return engine

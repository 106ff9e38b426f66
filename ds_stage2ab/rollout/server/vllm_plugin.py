"""The plugin of a vLLM server: receives the learner's weights over Gloo, and resizes images as the learner does.

vLLM finds `register` by the entry point in pyproject.toml when this package is installed in its environment, without
dependencies. vLLM's own engines need NCCL; this one works on every device, by way of host memory.
"""

import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, nn
from torch.distributed import Work
from transformers import AutoImageProcessor, Qwen2VLImageProcessorPil, Qwen3VLConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from ds_stage2ab.config.servers import GLOO_TRANSFER
from ds_stage2ab.rollout.server.gloo import GlooGroup, join

FIRST_WORKER = 1  # rank in the group; 0 is the learner
AHEAD = 4  # tensors that are in flight while one is loaded: small ones lie between large ones
NOT_LOADED = "%s: Failed to load weights"
"""vLLM's warning of a layer of which an update held nothing, which keeps its weights: it does not train."""


def register() -> None:
    """Register the engine: `--weight-transfer-config '{"backend": "ds_stage2ab_gloo"}'`.

    And let Pillow resize images, as in the learner: torchvision, which vLLM's environment has, gives other pixels for
    the same image.
    """
    logging.getLogger(finalize_layerwise_reload.__module__).addFilter(lambda record: record.msg != NOT_LOADED)
    WeightTransferEngineFactory.register_engine(GLOO_TRANSFER, __name__, GlooEngine.__name__)
    AutoImageProcessor.register(
        Qwen3VLConfig, image_processor_classes={"torchvision": Qwen2VLImageProcessor}, exist_ok=True
    )


class Qwen2VLImageProcessor(Qwen2VLImageProcessorPil):
    """Pillow's, under the class name that checkpoints give for their image processor."""


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Address of the learner's store, and the time-out of both sides."""

    address: str
    port: int
    size: int
    # members of the group: the learner and all workers of this server
    timeout_s: float


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """One bucket: three lists of equal length, a tensor each, named as in a checkpoint."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class GlooEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Receives checkpoint tensors, and loads them layer by layer while the next ones arrive."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    group: GlooGroup | None = None

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Join the learner's group; leave that of an earlier learner."""
        self.shutdown()
        parallel = self.parallel_config
        rank = FIRST_WORKER + parallel.data_parallel_index * parallel.world_size + parallel.rank
        timeout = timedelta(seconds=init_info.timeout_s)
        self.group = join(init_info.address, init_info.port, rank, init_info.size, timeout)

    def start_weight_update(self) -> None:
        """Begin vLLM's reload, which also rebuilds the packed weights that linear layers keep on some devices."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict) -> None:
        """As the base class, without its accelerator synchronisation: there may be none, and nothing is in flight.

        After a failed bucket vLLM considers the update ended, so the model must be left in a state that can run.
        """
        try:
            self.receive_weights(self.parse_update_info(update_info))
        except BaseException:
            forget_incomplete_layers(self.model)
            self.finish_weight_update()
            raise

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Receive and load one bucket."""
        if self.group is None:
            raise RuntimeError("no learner has met this server since it was started: start the run again")
        self.model.load_weights(_arriving(update_info, self.group, self.device))

    def finish_weight_update(self) -> None:
        """Complete the reload, and renew the heads."""
        finalize_layerwise_reload(self.model, self.model_config)
        renew_heads(self.model)

    def shutdown(self) -> None:
        self.group = None


def _arriving(bucket: UpdateInfo, group: GlooGroup, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor, one by one; each in its own memory, as vLLM keeps them until their layer is complete."""
    coming: deque[tuple[str, Tensor, Work]] = deque()
    for name, dtype, shape in zip(bucket.names, bucket.dtype_names, bucket.shapes, strict=True):
        tensor = torch.empty(shape, dtype=getattr(torch, dtype))
        coming.append((name, tensor, group.begin(tensor)))
        if len(coming) > AHEAD:
            yield _arrived(*coming.popleft(), group, device)
    while coming:
        yield _arrived(*coming.popleft(), group, device)


def _arrived(name: str, tensor: Tensor, begun: Work, group: GlooGroup, device: torch.device) -> tuple[str, Tensor]:
    group.finish(begun)
    return name, tensor.to(device)


def forget_incomplete_layers(model: nn.Module) -> None:
    """End a reload with the old weights of every layer that did not get all of its new ones.

    Otherwise it would be built from uninitialised memory, and received tensors would count again in the next reload.
    """
    for layer in model.modules():
        info = get_layerwise_info(layer)
        if info.can_load():
            info.loaded_weights.clear()
            info.load_numel = 0


def renew_heads(model: nn.Module) -> None:
    """Rebuild the packed weights of every output head.

    vLLM's reload processes a tied table once, as the embedding; the head would keep the packed copy of the old weights,
    while every checksum matches the new ones.
    """
    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)

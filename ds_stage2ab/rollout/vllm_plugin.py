"""What runs inside a vLLM server: weights that the learner sends over Gloo, and images cut as the learner cuts them.

vLLM finds `register` by the entry point in pyproject.toml when this package is installed in its environment, without
dependencies. Its own engines need NCCL; this one works on every device, by way of host memory.
"""

from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import nn
from transformers import AutoImageProcessor, Qwen2VLImageProcessorPil, Qwen3VLConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from ds_stage2ab.rollout.buckets import Parcel, open_row, places
from ds_stage2ab.rollout.gloo import GlooGroup, join

BACKEND = "ds_stage2ab_gloo"
FIRST_WORKER = 1  # in the group; 0 is the learner


def register() -> None:
    """Offer the engine under its name: `--weight-transfer-config '{"backend": "ds_stage2ab_gloo"}'`.

    And let images be reduced by Pillow, as the learner does: torchvision, which vLLM's environment has, gives other
    pixels for the same image.
    """
    WeightTransferEngineFactory.register_engine(BACKEND, __name__, GlooEngine.__name__)
    AutoImageProcessor.register(
        Qwen3VLConfig, image_processor_classes={"torchvision": Qwen2VLImageProcessor}, exist_ok=True
    )


class Qwen2VLImageProcessor(Qwen2VLImageProcessorPil):
    """Pillow's, under the name by which checkpoints ask for an image processor."""


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Where the learner waits, and how long either side waits for the other."""

    address: str
    port: int
    size: int
    # members of the group: the learner and all workers of this server
    timeout_s: float


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """One bucket: three lists of equal length, a tensor each, named as in a checkpoint."""

    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]


class GlooEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Receives checkpoint tensors in rows of bytes, and loads them layer by layer."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    group: GlooGroup | None = None

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Meet the learner; a group of an earlier learner is left."""
        self.shutdown()
        parallel = self.parallel_config
        rank = FIRST_WORKER + parallel.data_parallel_index * parallel.world_size + parallel.rank
        timeout = timedelta(seconds=init_info.timeout_s)
        self.group = join(init_info.address, init_info.port, rank, init_info.size, timeout)

    def start_weight_update(self) -> None:
        """Linear layers keep a packed copy of their weights on some devices: vLLM's reload makes it anew."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict) -> None:
        """As the base class, without its wait for an accelerator: there may be none, and nothing here is in flight."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Take one bucket. The row is not used again: vLLM keeps the tensors until their layer is complete."""
        assert self.group is not None, "init_transfer_engine comes first"
        fields = zip(update_info.names, update_info.dtypes, update_info.shapes, strict=True)
        parcels = [Parcel(name=name, dtype=dtype, shape=tuple(shape)) for name, dtype, shape in fields]
        row = torch.empty(places(parcels)[1], dtype=torch.uint8)
        self.group.receive(row)
        tensors = [tensor.to(self.device) for tensor in open_row(row, parcels)]
        self.model.load_weights(zip(update_info.names, tensors, strict=True))

    def finish_weight_update(self) -> None:
        """Complete the reload, and with it the head."""
        finalize_layerwise_reload(self.model, self.model_config)
        renew_heads(self.model)

    def shutdown(self) -> None:
        self.group = None


def renew_heads(model: nn.Module) -> None:
    """Make the packed copy of every output head anew.

    vLLM's reload processes a tied table once, as the embedding; the head would go on with its packed copy of the old
    one, while every checksum of the weights says that they are new.
    """
    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)

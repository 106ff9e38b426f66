"""The model with all of its weights, also where ZeRO 3 keeps a part of each on every rank.

`generate` inside gathered parameters hangs as soon as the ranks' answers differ in length: DeepSpeed's hooks release
the parameters after every forward all the same. So under ZeRO 3 the weights are gathered, one parameter at a time,
into a copy without hooks, which each rank uses as it likes and which is empty again afterwards.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import deepspeed
import torch
from torch import nn

from ds_stage2ab.world import World


class WholeModel:
    """Lends a model whose weights are all there.

    Args:
        model: the model that trains; not yet given to DeepSpeed.
        is_partitioned: whether DeepSpeed will partition its parameters (ZeRO 3).
        world: the learner ranks.
    """

    def __init__(self, model: nn.Module, world: World, *, is_partitioned: bool) -> None:
        self.model = model
        self.world = world
        self.shell = _without_weights(model) if is_partitioned else None

    @contextmanager
    def __call__(self, *, only_first: bool = False, device: str | None = None) -> Iterator[nn.Module]:
        """All ranks enter it together.

        Args:
            only_first: only rank 0 uses the model; on the others it may have no weights.
            device: where a gathered copy lies; None: where the model trains.
        """
        if self.shell is None:
            yield self.model
            return
        names = dict(self.shell.named_parameters())
        keep = not only_first or self.world.rank == 0
        with torch.no_grad(), self.world.collective():
            for name, parameter in self.model.named_parameters():
                with deepspeed.zero.GatheredParameters([parameter]):
                    if keep:
                        names[name].data = parameter.data.to(device or self.world.device, copy=True)
        try:
            yield self.shell
        finally:
            for parameter in names.values():
                parameter.data = torch.empty(0, dtype=parameter.dtype)


def _without_weights(model: nn.Module) -> nn.Module:
    """The same modules and buffers, with empty parameters; tied ones stay tied."""
    empty = {id(p): nn.Parameter(torch.empty(0, dtype=p.dtype), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, memo=empty).eval()

"""The model with all of its weights, also where ZeRO 3 keeps a part of each on every rank.

`generate` inside gathered parameters hangs as soon as the ranks' answers differ in length: DeepSpeed's hooks release
the parameters after every forward all the same. So under ZeRO 3 the weights are gathered, one parameter at a time,
into a copy without hooks, which each rank uses as it likes and which is empty again afterwards.
"""

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import deepspeed
import torch
from torch import nn

from ds_stage2ab.world import World


class WholeModel:
    """Lends a model whose weights are all there, or some of them.

    Args:
        model: the model that trains; not yet given to DeepSpeed.
        world: the learner ranks.
        is_partitioned: whether DeepSpeed will partition its parameters (ZeRO 3).
    """

    def __init__(self, model: nn.Module, world: World, *, is_partitioned: bool) -> None:
        self.model = model
        self.world = world
        self.is_partitioned = is_partitioned
        self.layout = _without_weights(model) if is_partitioned else model
        # the model that is lent; its weights may be looked at while it is

    @contextmanager
    def __call__(self) -> Iterator[nn.Module]:
        """The whole of it, where it trains; all ranks enter together."""
        with self.part([name for name, _ in self.model.named_parameters()], self.world.device):
            yield self.layout

    @contextmanager
    def part(self, names: Collection[str], device: str, *, only_first: bool = False) -> Iterator[None]:
        """Inside, the parameters of these names are there in `layout`; all ranks enter together.

        Args:
            device: where gathered copies lie.
            only_first: only on rank 0.
        """
        if not self.is_partitioned:
            yield
            return
        sources, copies = dict(self.model.named_parameters()), dict(self.layout.named_parameters())
        keep = not only_first or self.world.rank == 0
        with torch.no_grad(), self.world.collective():
            for name in names:
                with deepspeed.zero.GatheredParameters([sources[name]]):
                    if keep:
                        copies[name].data = sources[name].data.to(device, copy=True)
        try:
            yield
        finally:
            for name in names:
                copies[name].data = torch.empty(0, dtype=copies[name].dtype)


def _without_weights(model: nn.Module) -> nn.Module:
    """The same modules and buffers, with empty parameters; tied ones stay tied."""
    empty = {id(p): nn.Parameter(torch.empty(0, dtype=p.dtype), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, memo=empty).eval()

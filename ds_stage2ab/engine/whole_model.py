"""The model with full parameters, under ZeRO 3 too, where each rank holds a part of each.

`generate` inside `GatheredParameters` hangs as soon as the ranks' answers differ in length: DeepSpeed's hooks still
release the parameters after every forward. So under ZeRO 3 the weights are gathered, one parameter at a time, into a
copy without hooks, which each rank uses independently and which is emptied afterwards.
"""

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import deepspeed
import torch
from torch import nn

from ds_stage2ab.errors import LocalFault
from ds_stage2ab.runtime.ranks import World


class WholeModel:
    """Gathers the full parameters of a model, all of them or some.

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
        # the model to use; under ZeRO 3 its parameters are empty outside of `__call__` and `part`

    @contextmanager
    def __call__(self) -> Iterator[nn.Module]:
        """The model with all parameters, on the device where it trains; collective."""
        with self.part([name for name, _ in self.model.named_parameters()], self.world.device):
            yield self.layout

    @contextmanager
    def part(self, names: Collection[str], device: str, *, only_first: bool = False) -> Iterator[None]:
        """Inside, `layout` has the parameters of these names; collective.

        Args:
            device: of the gathered copies.
            only_first: copy on rank 0 alone.

        Raises:
            RuntimeError, MemoryError: no memory for a copy on this rank; the other ranks are inside the block.
            LocalFault: a gather failed on this rank; the other ranks are still in it.
        """
        if not self.is_partitioned:
            yield
            return
        keep = not only_first or self.world.rank == 0
        try:
            with torch.no_grad(), self.gathering():
                fault = self._gather(names, device, keep=keep)
            if fault is not None:
                raise fault
            yield
        finally:
            self._give_back(names)

    def _gather(self, names: Collection[str], device: str, *, keep: bool) -> RuntimeError | MemoryError | None:
        """Copy parameters to `layout`, and move its buffers to the same device.

        Returns: why a copy could not be made. The gathers go on, as the other ranks take part in them.
        """
        sources, copies = dict(self.model.named_parameters()), dict(self.layout.named_parameters())
        fault = None
        for name in names:
            with deepspeed.zero.GatheredParameters([sources[name]]):
                try:
                    if keep and fault is None:
                        copies[name].data = sources[name].data.to(device, copy=True)
                except (RuntimeError, MemoryError) as error:
                    fault = error
                    self._give_back(names)  # frees memory for the remaining gathers
        if fault is None:
            for buffer in self.layout.buffers():  # on the CPU at first, where the model was loaded; small
                buffer.data = buffer.data.to(device)
        return fault

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Converts a failed gather to a LocalFault: the other ranks are still in it, so no collective can follow."""
        try:
            with self.world.collective():
                yield
        except RuntimeError as error:
            raise LocalFault(
                f"rank {self.world.rank}: the weights cannot be gathered: {error}",
                fix="if memory has run out, set deepspeed.offload_optimizer to cpu, or train on more ranks",
            ) from error

    def _give_back(self, names: Collection[str]) -> None:
        copies = dict(self.layout.named_parameters())
        for name in names:
            copies[name].data = torch.empty(0, dtype=copies[name].dtype)


def _without_weights(model: nn.Module) -> nn.Module:
    """The same modules and buffers, with empty parameters; tied ones stay tied."""
    empty = {id(p): nn.Parameter(torch.empty(0, dtype=p.dtype), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, memo=empty).eval()

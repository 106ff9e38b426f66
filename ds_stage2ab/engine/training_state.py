"""What an update changes, as full tensors: no number of ranks and no ZeRO stage shapes them.

Of each trained parameter: its fp32 weights, and what the optimizer keeps of it (`exp_avg` and `exp_avg_sq` of Adam).
A tensor's name is `<parameter>/<what>`. The fp32 weights are the master copy that bf16 weights are rounded from.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

WEIGHT = "weight"
STEP = "step"
"""torch's Adam counts the updates of each tensor, for the correction of its bias."""


class Stored(Protocol):
    """Tensors by the names of `state_tensors`."""

    @property
    def names(self) -> set[str]: ...

    def __getitem__(self, name: str) -> Tensor: ...


class Shards(Protocol):
    """How a ZeRO stage keeps the optimizer's state."""

    def optimizer(self) -> torch.optim.Optimizer: ...

    def tensors(self) -> list[Tensor]:
        """This rank's tensors that the optimizer updates: the keys of its state."""

    def get(self, parameter: nn.Parameter, key: str) -> Tensor:
        """The full tensor in fp32; collective."""

    def put(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        """Set this rank's part of it."""


def state_tensors(engine: Any, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, full fp32 tensor) of every trained parameter; collective, the same names in one order on all ranks.

    Before the first update the optimizer has no state, and there are the weights alone.
    """
    shards = _shards(engine)
    keys = state_keys(engine)
    for name, parameter in trained(model):
        for key in keys:
            yield f"{name}/{key}", shards.get(parameter, key)


def state_keys(engine: Any) -> tuple[str, ...]:
    """What is stored of every trained parameter."""
    return (WEIGHT, *_keys(_shards(engine)))


def num_updates(engine: Any) -> int:
    """The updates that the optimizer has counted; 0 if it counts none."""
    shards = _shards(engine)
    states = [shards.optimizer().state.get(tensor, {}) for tensor in shards.tensors()]
    return max((int(state.get(STEP, 0)) for state in states), default=0)


def restore_weights(model: nn.Module, stored: Stored) -> None:
    """Before the model is given to DeepSpeed: what trains gets its stored weights, rounded to its own type."""
    with torch.no_grad():
        for name, parameter in trained(model):
            parameter.copy_(stored[f"{name}/{WEIGHT}"])


def restore_optimizer(engine: Any, model: nn.Module, stored: Stored, *, updates: int) -> None:
    """Afterwards: the fp32 weights, and the optimizer's state as if it had made so many updates."""
    keys = sorted({name.rpartition("/")[2] for name in stored.names} - {WEIGHT})
    empty = _shards(engine)
    state = empty.optimizer().state
    for tensor in empty.tensors() if keys else ():
        state[tensor] = {STEP: torch.tensor(float(updates)), **{key: torch.zeros_like(tensor.detach()) for key in keys}}
    shards = _shards(engine)
    with torch.no_grad():
        for name, parameter in trained(model):
            for key in (WEIGHT, *keys):
                shards.put(parameter, key, stored[f"{name}/{key}"])


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """(name, parameter) of what trains."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _keys(shards: Shards) -> tuple[str, ...]:
    """What the optimizer keeps of each tensor, of the tensor's own shape."""
    for tensor in shards.tensors():
        state = shards.optimizer().state.get(tensor, {})
        return tuple(sorted(k for k, v in state.items() if torch.is_tensor(v) and v.shape == tensor.shape))
    return ()


def _shards(engine: Any) -> Shards:
    stage = engine.zero_optimization_stage()
    return (_Whole, _Flat, _Flat, _Partitioned)[stage](engine.optimizer)


class _Whole:
    """Stage 0 in fp32: torch's own optimizer on the parameters themselves."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    def optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer

    def tensors(self) -> list[Tensor]:
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def get(self, parameter: nn.Parameter, key: str) -> Tensor:
        return parameter.detach() if key == WEIGHT else self._optimizer.state[parameter][key]

    def put(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        (parameter if key == WEIGHT else self._optimizer.state[parameter][key]).copy_(value)


class _Zero:
    """DeepSpeed's optimizer of the stages below."""

    def __init__(self, optimizer: Any) -> None:
        self._zero = optimizer

    def optimizer(self) -> torch.optim.Optimizer:
        return self._zero.optimizer

    def get(self, parameter: nn.Parameter, key: str) -> Tensor:
        return safe_get_full_fp32_param(parameter) if key == WEIGHT else safe_get_full_optimizer_state(parameter, key)


class _Flat(_Zero):
    """Stages 1 and 2: each rank updates its part of one flat tensor per parameter group.

    DeepSpeed maps parameters to the optimizer's state after the first group's first update, when the other groups have
    none: they are mapped again.
    """

    def __init__(self, optimizer: Any) -> None:
        super().__init__(optimizer)
        if all(tensor in optimizer.optimizer.state for tensor in self.tensors()):
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()

    def tensors(self) -> list[Tensor]:
        return [tensor for group in self._zero.optimizer.param_groups for tensor in group["params"]]

    def put(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        if key == WEIGHT:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, key)


class _Partitioned(_Zero):
    """Stage 3: each rank has an equal part of every parameter, the last one filled up."""

    def tensors(self) -> list[Tensor]:
        return list(self._zero.fp32_partitioned_groups_flat)

    def put(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        """DeepSpeed's setter for full tensors refuses sizes that do not divide by the ranks."""
        size = safe_get_local_fp32_param(parameter).numel()
        first = size * torch.distributed.get_rank()
        filled = torch.zeros(size, dtype=torch.float32)
        part = value.flatten()[first : first + size]
        filled[: len(part)] = part
        if key == WEIGHT:
            safe_set_local_fp32_param(parameter, filled)
        else:
            safe_set_local_optimizer_state(parameter, filled, key)


def random_state(device: str) -> dict[str, Tensor]:
    """The state of torch's own generators on this rank, which dropout samples from."""
    states = {"cpu": torch.get_rng_state()}
    if torch.device(device).type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random(states: dict[str, Tensor], device: str) -> None:
    """The inverse of `random_state`; a rank that was not there goes on with its own."""
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if torch.device(device).type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)

"""What an update changes is stored as full tensors, from which another engine goes on to the last bit."""

import pytest
import torch

from ds_stage2ab.engine.training_state import (
    num_updates,
    restore_optimizer,
    restore_weights,
    state_tensors,
    trained,
)
from tests.unit.engine.stage import PER_DEVICE

ADAM = ("exp_avg", "exp_avg_sq")


class Tensors(dict):
    """In memory, as `StoredTensors` reads them."""

    @property
    def names(self):
        return set(self)


def stored(stage):
    return Tensors((name, tensor.clone()) for name, tensor in state_tensors(stage.window.engine, stage.bench.model))


def trains(stage, step):
    stage.window.draw = lambda step, micro_step: stage.bench.samples[micro_step * PER_DEVICE :][:PER_DEVICE]
    assert stage.window.run(step, stage.channel).applied


@pytest.mark.parametrize(
    ("zero_stage", "precision", "optimizer", "offload"),
    [
        (0, "fp32", "adamw", "none"),
        (1, "bf16", "adamw", "none"),
        pytest.param(2, "fp32", "adamw", "cpu", marks=pytest.mark.soak),
        (3, "bf16", "adamw", "none"),
        pytest.param(1, "fp32", "sgd", "none", marks=pytest.mark.soak),
    ],
)
def test_another_engine_goes_on_to_the_last_bit(build, zero_stage, precision, optimizer, offload):
    changes = {
        "deepspeed.zero_stage": zero_stage, "model.precision": precision, "training.optimizer": optimizer,
        "deepspeed.offload_optimizer": offload, "training.learning_rate": 1e-3, "training.max_steps": 3,
    }
    first = build(changes)
    for step in range(2):
        trains(first, step)
    state, updates = stored(first), num_updates(first.window.engine)
    keys = ADAM if optimizer == "adamw" else ()
    assert state.keys() == {f"{name}/{key}" for name, _ in trained(first.bench.model) for key in ("weight", *keys)}
    assert updates == (2 if optimizer == "adamw" else 0)
    trains(first, 2)
    second = build(changes, before=lambda model: restore_weights(model, state))
    restore_optimizer(second.window.engine, second.bench.model, state, updates=updates)
    again = stored(second)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    second.window.start_at(2, bad_steps=0)
    trains(second, 2)
    expected, seen = stored(first), stored(second)
    assert all(torch.equal(seen[name], tensor) for name, tensor in expected.items())
    assert all(torch.equal(second.weights()[name], tensor) for name, tensor in first.weights().items())

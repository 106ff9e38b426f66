"""Processes in time: alone, on shared cores, and at a signal."""

import pytest

from ds_stage2ab.simulation.machine import Machine, Process, Signal


def work(machine: Machine, ended: dict[str, float], name: str, *seconds: float) -> Process:
    yield from seconds
    ended[name] = machine.now


def ends(cores: int | None, **seconds: tuple[float, ...]) -> dict[str, float]:
    machine, ended = Machine(cores), {}
    for name, parts in seconds.items():
        machine.start(work(machine, ended, name, *parts))
    assert machine.run() == max(ended.values())
    return ended


def test_with_cores_enough_everybody_takes_its_own_time():
    assert ends(None, a=(1.0, 2.0), b=(2.5,), c=(0.0,)) == {"a": 3.0, "b": 2.5, "c": 0.0}
    assert ends(3, a=(1.0, 2.0), b=(2.5,), c=(0.0,)) == {"a": 3.0, "b": 2.5, "c": 0.0}


def test_all_that_compute_go_on_equally_fast():
    """On one core: both at half speed until b has done its 1 s, at 2 s; a has 2 s left, alone."""
    assert ends(1, a=(3.0,), b=(1.0,)) == {"b": 2.0, "a": 4.0}
    # Three on two cores, each at 2/3: 1.5 s for the 1 s of c; then two at full speed: 1 s and 2 s more.
    assert ends(2, a=(3.0,), b=(2.0,), c=(1.0,)) == pytest.approx({"c": 1.5, "b": 2.5, "a": 3.5})


def test_together_they_are_as_fast_as_there_are_cores():
    ended = ends(2, a=(1.0, 4.0), b=(2.0,), c=(3.0, 1.0), d=(5.0,))
    assert max(ended.values()) >= 16 / 2 and ended["d"] == pytest.approx(8.0)  # 16 s of work, all cores busy to the end


def test_a_process_that_waits_goes_on_at_the_last_signal_and_uses_no_core():
    machine, ended, signal = Machine(1), {}, Signal(needed=2)

    def gives(seconds: float) -> Process:
        yield seconds
        machine.give(signal)

    def waits() -> Process:
        yield signal
        ended["begun"] = machine.now
        yield 1.0
        ended["ended"] = machine.now

    machine.start(waits())
    machine.start(gives(1.0))
    machine.start(gives(2.0))
    machine.run()
    # One core: the two give at 2 s and 3 s, as if the third were not there; a signal that was given lets pass at once.
    assert ended == {"begun": 3.0, "ended": 4.0}
    machine.start(waits())
    assert ended["begun"] == 3.0 + 1.0


def test_the_same_processes_give_the_same_times():
    parts = {f"p{n}": (0.1 * n, 1.0 / (n + 1)) for n in range(20)}
    assert ends(3, **parts) == ends(3, **parts)

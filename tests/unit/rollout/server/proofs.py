"""Servers that are lost and come back: real routes and transfers, a worker that meets the learner."""

from ds_stage2ab.errors import NoServerLeft, ServerFault
from tests.fakes import Settings
from tests.faults.served import Scenes
from tests.unit.parts import greedy_sampling
from tests.unit.serving import PLACES


class SmallScenes(Scenes):
    """At servers that decode as many sequences as the backend of these tests asks of one."""

    def server(self, **settings):
        server = super().server(**{"settings": Settings(max_num_seqs=PLACES), **settings})
        server.state.image = self.bench.samples[0].vision.pixel_values.numpy().tobytes()
        return server


class Probing:
    """Answers of the probe, and who was asked for them."""

    def __init__(self):
        self.asked = []
        self.wrong = set()
        self.before = lambda: None

    def ask(self, apis, replicas, *, read_s):
        self.asked.append([api.url for api in apis])
        return self.asked[-1]

    def judge(self, asked):
        self.before()
        return {url: ServerFault("computes", where=url) if url in self.wrong else 1e-6 for url in asked}


def step(backend, scenes, finished):
    """A step's rollouts, and what has changed behind them."""
    with backend.current_weights(finished):
        drawn = list(backend.generate(scenes.bench.samples, greedy_sampling(), finished_steps=finished))
    assert len(drawn) == 6 and {one.weight_version for one in drawn} == {f"start/{finished}"}
    return {one.source.removeprefix("vllm ") for one in drawn}, backend.settle(counts=True)


def counts(changes):
    return changes.serving, changes.lost, changes.back


def recovered(backend, scenes, finished, before=lambda lost: None):
    """A step's rollouts as Channel B asks for them; where no server is left all ranks prove servers again."""
    drawn = []
    with backend.current_weights(finished, generates_once=True):
        for one in backend.generate(scenes.bench.samples, greedy_sampling(), finished_steps=finished):
            if isinstance(one, NoServerLeft):
                before(one)
                backend.recover(finished)
            else:
                drawn.append(one)
    return drawn, backend.settle(counts=True)

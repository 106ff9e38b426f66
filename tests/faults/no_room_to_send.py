"""Two ranks, the first of which has no memory for the copies of weights that are to be sent.

With agreements of different lengths the ranks would take the news of one for that of the other.
"""

import sys
from contextlib import contextmanager

from torch import nn

from ds_stage2ab.config.servers import GLOO_TRANSFER
from ds_stage2ab.engine.build import start_process_group
from ds_stage2ab.engine.tuner import merged_tensors
from ds_stage2ab.errors import Stage2Error
from ds_stage2ab.rollout.server.api import ServerApi
from ds_stage2ab.rollout.server.weight_sync import Target, WeightSync
from ds_stage2ab.runtime.ranks import World
from ds_stage2ab.runtime.shutdown import exit_now, report_error


class Provider:
    """As `engine.whole_model` gathers under ZeRO 3: the others have their copies when one has none."""

    def __init__(self, world):
        self.world = world
        self.model = nn.Linear(4, 4)

    @contextmanager
    def part(self, names, device, *, only_first):
        if self.world.rank == 0:
            raise MemoryError("no room for a copy")
        yield


def main():
    world = World(start_process_group(30))
    provider = Provider(world)
    sync = WeightSync(
        provider, lambda: merged_tensors(provider.model), world, start_id="start", bucket_bytes=1, timeout_s=5.0
    )
    nobody = ServerApi("http://127.0.0.1:9", timeout_s=1.0, connections=1)
    sync._prepare = lambda target: None  # it is ready for the weights
    try:
        with world.raise_together("bringing the weights", num_flags=2):
            sync.sync_weights(3, [Target(api=nobody, group_port=None, world_size=1, transfer=GLOO_TRANSFER)])
    except Stage2Error as error:
        return report_error(error, world.rank, speaks=True)
    except MemoryError as error:
        print(f"ours: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    exit_now(main())

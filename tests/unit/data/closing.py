"""A feed with one worker over plain numbers, for a process that ends without the interpreter's clean-up."""

from dataclasses import dataclass

from ds_stage2ab.config.load import load_config
from ds_stage2ab.data.feed import Feed
from ds_stage2ab.plan import make_plan
from tests.parts import ROOT

NUM_RECORDS = 64


@dataclass(frozen=True, slots=True)
class Drawn:
    draw: int


class Numbers:
    """In the place of a `Reader`."""

    def __getitem__(self, draw):
        return Drawn(draw)


def closed_feed(close):
    plan = make_plan(load_config(ROOT / "tests" / "examples" / "valid" / "minimal.yaml").config, 1, NUM_RECORDS)
    feed = Feed(Numbers(), plan, 0, workers=1)
    feed(0, 0)
    if close:
        feed.close()
    else:
        KEPT.append(feed)


KEPT = []

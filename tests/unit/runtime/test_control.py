"""Which address a rank gives the others; what the group exchanges is tested with real ranks in `test_ranks.py`."""

import pytest

from ds_stage2ab.runtime.control import other_machine
from ds_stage2ab.runtime.gloo import address_towards


@pytest.mark.parametrize(
    ("own", "everybodys", "faced"),
    [
        ("127.0.0.1", ["127.0.0.1", "127.0.0.1"], None),  # one machine
        ("127.0.0.1", ["127.0.0.1", "127.0.1.1", "10.0.0.7"], "10.0.0.7"),  # rank 0's name is a loopback address there
        ("10.0.0.7", ["127.0.0.1", "10.0.0.7"], None),  # it faces rank 0 already
        ("::1", ["::1", "fd00::7"], "fd00::7"),
    ],
)
def test_a_rank_beside_rank_0_faces_the_other_machine(own, everybodys, faced):
    assert other_machine(own, everybodys) == faced


def test_a_host_of_this_machine_is_faced_from_this_machine():
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert address_towards("localhost", 80) in ("127.0.0.1", "::1")


def test_a_host_that_nobody_knows():
    with pytest.raises(OSError, match=r"not known|resolution"):
        address_towards("no-such-host.invalid")

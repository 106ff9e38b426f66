"""The version of a server's weights, as it tells it: only a transfer of this run sets the current one."""

from collections.abc import Sequence

from ds_stage2ab.errors import ServerFault, printable
from ds_stage2ab.rollout.server.api import ServerApi, as_server_fault
from ds_stage2ab.rollout.server.request_pool import ServerLost
from ds_stage2ab.runtime.ranks import World


def version_at(server: ServerApi) -> str:
    """The version of a server's weights.

    Raises:
        ServerFault: it does not tell.
    """
    with as_server_fault(server.url, "telling the version of its weights"):
        return server.weight_version()


def other_version(url: str, seen: str, wanted: str) -> ServerFault:
    """The fault of a server with other weights."""
    return ServerFault(
        f"the server has the weights {printable(seen)}, not the current ones, {wanted}",
        where=url,
        fix="let nobody else send it weights; one that was started again is sent them before the next rollouts",
    )


def other_versions(
    world: World, servers: Sequence[ServerApi], wanted: str
) -> tuple[dict[str, ServerFault], dict[str, ServerFault]]:
    """The faults, by address, of servers with another version on any rank, and of silent ones; collective."""
    mine: tuple[dict[str, ServerFault], dict[str, ServerFault]] = ({}, {})
    for server in servers:
        try:
            seen = version_at(server)
        except ServerFault as fault:
            mine[1][server.url] = fault
            continue
        if seen != wanted:
            mine[0][server.url] = other_version(server.url, seen, wanted)
    others: dict[str, ServerFault] = {}
    faults: dict[str, ServerFault] = {}
    for one in world.gather(mine):
        others, faults = {**one[0], **others}, {**one[1], **faults}
    return others, faults


def refuse_other_version(server: ServerApi, version: str) -> None:
    """What a server says behind an answer: it may have been started again since the weights were proven.

    Raises:
        ServerLost: it does not tell, or has other weights.
    """
    try:
        seen = version_at(server)
    except ServerFault as fault:
        raise ServerLost from fault
    if seen != version:
        raise ServerLost from other_version(server.url, seen, version)

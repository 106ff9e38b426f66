"""Servers as a run needs them, and the page that is said of one that is not as it must be."""

import pytest

from ds_stage2ab.config.servers import GLOO_TRANSFER
from ds_stage2ab.errors import EXIT_ENVIRONMENT, ServerFault
from ds_stage2ab.rollout.server.api import ServerApi
from ds_stage2ab.rollout.server.handshake import Requirements, ServerInfo, check_servers
from tests.fakes import FakeServer
from tests.unit.serving import LONG

ADDRESS = "http://ADDRESS"  # of the server, in the expected pages


def good_server(needs: Requirements, **changes) -> FakeServer:
    alike = {"prompt_ids": lambda body: list(needs.sample.prompt_ids), "tokenize": needs.vocabulary.encode}
    server = FakeServer(**{**alike, **changes})
    server.state.image = b"header" + needs.sample.vision.pixel_values.numpy().tobytes() + b"trailer"
    return server


def seen(*, world_size: int, replicas: int, transfer: str = GLOO_TRANSFER) -> ServerInfo:
    return ServerInfo(world_size=world_size, replicas=replicas, transfer=transfer)


def api(server: FakeServer, timeout_s: float = LONG) -> ServerApi:
    return ServerApi(server.base_url, timeout_s=timeout_s, connections=2)


def page(needs: Requirements, *servers: FakeServer, sizes: tuple[int, ...] = (1,), timeout_s: float = LONG) -> str:
    """What is said of servers that cannot be used; addresses are left out."""
    with pytest.raises(ServerFault) as caught:
        check_servers([api(server, timeout_s) for server in servers], sizes, needs)
    assert caught.value.code == EXIT_ENVIRONMENT
    assert "docs/rollout.md" in caught.value.fix and "ds-stage2ab launch" in caught.value.fix
    text = caught.value.why
    for server in servers:
        text = text.replace(server.base_url, ADDRESS)
    return text


def lines(text: str) -> list[tuple[str, str]]:
    """(what was seen, remedy) of a page of one server."""
    head, address, *rest = text.splitlines()
    assert (head, address) == ("1 of 1 rollout servers cannot be used", f"  {ADDRESS}")
    seen, fixes = rest[::2], rest[1::2]
    assert all(line.startswith("    ") for line in seen) and all(line.startswith("      fix: ") for line in fixes)
    return [(one.strip(), fix.strip().removeprefix("fix: ")) for one, fix in zip(seen, fixes, strict=True)]


def only_line(needs: Requirements, server: FakeServer, **settings) -> tuple[str, str]:
    (line,) = lines(page(needs, server, **settings))
    return line

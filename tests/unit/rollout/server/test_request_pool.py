"""A rank's requests at several servers: order, caps at every moment, and what happens when servers fail."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ds_stage2ab.config.servers import server_slots
from ds_stage2ab.errors import EXIT_ENVIRONMENT, DataError, NoServerLeft, ServerFault
from ds_stage2ab.rollout.server.api import ServerApi
from ds_stage2ab.rollout.server.request_pool import Interrupted, RequestPool, ServerLost
from tests.fakes import FakeServer
from tests.unit.serving import LONG

D = 4  # decode_batch_size


def results(slots: RequestPool) -> list:
    return list(slots.results(within_s=LONG))


def until(condition):
    limit = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.002)


def permits_left() -> int:
    return sum(thread.name == "rollouts" for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def no_place_is_left():
    """Every place ends with its batch."""
    yield
    until(lambda: permits_left() == 0)


# --- plain callables --------------------------------------------------------------------------------------------


def test_results_come_in_order_whichever_ends_first():
    def ask(request, server, attempt):
        time.sleep(0.002 * (7 - request))  # the later ones are ready first
        return request, server, attempt

    answers = results(RequestPool(7, [3, 1], ask))
    assert [(request, attempt) for request, _, attempt in answers] == [(n, 1) for n in range(7)]
    assert [server for _, server, _ in answers[:4]] == [0, 0, 1, 0]


def test_a_permit_that_is_free_takes_what_waits_whichever_server_is_slow():
    go, taken = threading.Event(), []

    def ask(request, server, attempt):
        if server == 0:
            go.wait(LONG)
        taken.append((request, server))
        return request

    pool = RequestPool(8, [1, 1], ask)
    until(lambda: len(taken) == 7)
    assert taken == [(n, 1) for n in range(1, 8)]
    go.set()
    assert results(pool) == list(range(8))


def test_each_is_given_out_before_the_later_ones_are_there():
    go = threading.Event()

    def ask(request, server, attempt):
        return request if request == 0 else go.wait(LONG)

    drawn = RequestPool(3, [2], ask).results(within_s=LONG)
    assert next(drawn) == 0 and not go.is_set()
    go.set()
    assert list(drawn) == [True, True]


def test_nothing_is_asked_for_nothing():
    assert results(RequestPool(0, [2, 2], lambda *asked: pytest.fail("asked"))) == []


def test_no_longer_wait_than_said():
    """One request is answered, the second never, and nobody asks for the third any more."""
    go, sent = threading.Event(), []

    def ask(request, server, attempt):
        sent.append(request)
        return request if request == 0 else go.wait(LONG)

    drawn = RequestPool(3, [1], ask).results(within_s=2)
    assert next(drawn) == 0
    with pytest.raises(ServerFault, match="request 2 of 3 has no answer after 2 s, all tries") as caught:
        next(drawn)
    assert caught.value.code == EXIT_ENVIRONMENT and "the servers' own logs" in caught.value.fix
    go.set()
    until(lambda: permits_left() == 0)
    assert sent == [0, 1]


def test_what_a_lost_server_has_left_goes_to_the_others():
    """Requests 0 and 2 are at server 0 when both fail: second attempts. The rest was never sent: first ones."""
    both = threading.Barrier(2)

    def ask(request, server, attempt):
        if server == 0:
            both.wait(LONG)
            raise ServerLost
        return request, server, attempt

    answers = results(RequestPool(6, [2, 1], ask))
    assert answers == [(0, 1, 2), (1, 1, 1), (2, 1, 2), (3, 1, 1), (4, 1, 1), (5, 1, 1)]


def test_a_server_without_permits_takes_over_nothing():
    def ask(request, server, attempt):
        if server == 0:
            raise ServerLost
        return request, server

    assert results(RequestPool(4, [1, 0, 1], ask)) == [(n, 2) for n in range(4)]


def test_without_another_place_the_batch_ends():
    def ask(request, server, attempt):
        raise ServerLost from ServerFault(f"request {request}", where="the only one")

    begun = time.monotonic()
    with pytest.raises(NoServerLeft, match="request 0"):
        results(RequestPool(3, [1, 0], ask))
    assert time.monotonic() - begun < 2


def test_a_rank_without_a_permit_at_what_is_left_takes_one():
    def ask(request, server, attempt):
        if server == 0:
            raise ServerLost
        return request, server, attempt

    assert results(RequestPool(3, [2, 0], ask))[2] == (2, 1, 1)


def test_an_interrupted_batch_gives_out_what_is_there_and_asks_nothing_more():
    """Request 0 is answered; 1 is on its way when the batch is interrupted, and its server fails afterwards."""
    go, sent = threading.Event(), []

    def ask(request, server, attempt):
        sent.append(request)
        if request:
            go.wait(LONG)
            raise ServerLost
        return request

    pool = RequestPool(3, [1], ask)
    until(lambda: sent == [0, 1])
    pool.interrupt()
    drawn = pool.results(within_s=LONG)
    assert next(drawn) == 0
    with pytest.raises(Interrupted):
        next(drawn)
    go.set()
    until(lambda: permits_left() == 0)
    assert sent == [0, 1] and pool.causes == {}


def test_the_others_keep_their_own_permits():
    at_once, most, lock = 0, 0, threading.Lock()

    def ask(request, server, attempt):
        nonlocal at_once, most
        if server == 0:
            raise ServerLost
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.005)
        with lock:
            at_once -= 1

    results(RequestPool(18, [4, 2], ask))
    assert most == 2


def test_another_exception_ends_it_at_once():
    """Request 1 breaks while 0 is on its way: nobody waits for 0, and 2 to 9 are never sent."""
    go, sent = threading.Event(), []

    def ask(request, server, attempt):
        sent.append(request)
        if request == 1:
            raise DataError("no picture")
        go.wait(LONG)

    begun = time.monotonic()
    with pytest.raises(DataError, match="no picture"):
        results(RequestPool(10, [2], ask))
    assert time.monotonic() - begun < 2
    go.set()
    until(lambda: permits_left() == 0)
    assert sorted(sent) == [0, 1]


def test_a_server_lost_after_the_end_starts_nothing_again():
    go, sent = threading.Event(), []

    def ask(request, server, attempt):
        sent.append((request, server))
        if request == 1:
            raise DataError("no picture")
        go.wait(LONG)
        raise ServerLost

    with pytest.raises(DataError):
        results(RequestPool(3, [1, 1, 1], ask))
    go.set()
    until(lambda: permits_left() == 0)
    assert all(server == request for request, server in sent)


# --- caps -------------------------------------------------------------------------------------------------------


def fakes_for(replicas: list[int]) -> list[FakeServer]:
    """Each answers nobody until it has been full once; afterwards after 0 to 4 ms."""
    servers = []
    for count in replicas:
        server = FakeServer(world_size=count)

        def seconds(body, server=server, count=count):
            limit = time.monotonic() + LONG
            while server.most_in_flight < D * count and time.monotonic() < limit:
                time.sleep(0.002)
            return 0.002 * (body["request"] % 3)

        server.seconds = seconds
        servers.append(server)
    return servers


def draw_as_rank(rank: int, servers: list[FakeServer], replicas: list[int], permits: list[int]) -> list:
    """Three times as many requests as the rank has permits."""
    apis = [ServerApi(server.base_url, timeout_s=LONG, connections=D * sum(replicas)) for server in servers]

    def ask(request, server, attempt):
        body = {"messages": [], "return_token_ids": True, "rank": rank, "request": request}
        return apis[server].chat(body, read_s=LONG)["choices"][0]["token_ids"]

    return results(RequestPool(3 * sum(permits), permits, ask))


def most_of(rank: int, server: FakeServer) -> int:
    """Requests of this rank in flight there, at most."""
    return max((count for _, count in server.timeline(lambda request: request.body["rank"] == rank)), default=0)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("replicas", [[6], [4, 2], [1]])
def test_every_server_is_full_and_never_above_its_cap(replicas: list[int], ranks: int):
    servers, slots = fakes_for(replicas), server_slots(D, replicas, ranks)
    with ThreadPoolExecutor(ranks) as pool:
        for server in servers:
            server.__enter__()
        drawn = pool.map(lambda rank: draw_as_rank(rank, servers, replicas, slots[rank]), range(ranks))
        answers = [len(one) for one in drawn]
        for server in servers:
            server.__exit__()
    # 3 D S in all
    assert sum(answers) == 3 * D * sum(replicas) == sum(len(server.chats) for server in servers)
    assert [server.most_in_flight for server in servers] == [D * count for count in replicas]
    for rank, row in enumerate(slots):
        assert [most_of(rank, server) for server in servers] == row


def test_a_rank_without_a_place_at_a_server_sends_it_nothing():
    """One place per replica: 4 at the first server and 2 at the second, for 4 ranks: the last two have none there."""
    servers, replicas = [FakeServer(), FakeServer()], [4, 2]
    slots = server_slots(1, replicas, 4)
    assert slots == [[1, 1], [1, 1], [1, 0], [1, 0]]
    with servers[0], servers[1], ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda rank: draw_as_rank(rank, servers, replicas, slots[rank]), range(4)))
    senders = [{request.body["rank"] for request in server.chats} for server in servers]
    assert senders == [{0, 1, 2, 3}, {0, 1}]

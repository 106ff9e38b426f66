"""Rollouts never wait without a bound: every HTTP call has both time-outs, every wait for a thread has one."""

import ast
from collections.abc import Iterator

import pytest

from tests.architecture.sources import PACKAGE, imported_names, package_files, parse, relative

ROLLOUT = [path for path in package_files() if path.is_relative_to(PACKAGE / "rollout")]
# Methods that wait for another thread, process or machine until told otherwise, and how many arguments come before
# their time-out. `get` of a queue; that of a mapping has a key, which comes first too.
METHODS = {"wait": 0, "result": 0, "exception": 0, "join": 0, "acquire": 1, "wait_for": 1, "get": 1}
# Functions and classes that do, by whatever name of a module they are called; None: only by the keyword.
CALLS = {"TCPStore": None, "ProcessGroupGloo": 3, "create_connection": 1, "as_completed": 1, "wait": 1}
MODULES = ("concurrent.futures", "futures", "dist", "socket")
# What waits for all its threads, however long they take: as a context, and when it is shut down. Ours are called pool.
POOLS = ("ThreadPoolExecutor", "ProcessPoolExecutor")
NETWORK = ("requests", "urllib", "urllib3", "http", "httpx", "aiohttp", "ftplib", "socketserver", "asyncio")
HTTP_METHODS = {"request", "get", "post", "put", "patch", "delete", "head", "options", "send", "urlopen"}


# --- findings ---------------------------------------------------------------------------------------------------


def unbounded_waits(tree: ast.AST) -> Iterator[int]:
    """Lines of waits without a time-out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and not _has_timeout(node):
            yield node.lineno
        if isinstance(node, ast.With) and any(_makes_a_pool(item.context_expr) for item in node.items):
            yield node.lineno


def _makes_a_pool(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in POOLS


def _has_timeout(call: ast.Call) -> bool:
    """Also calls that do not wait."""
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    owner, _, name = ast.unparse(call.func).rpartition(".")
    if name == "shutdown" and owner.endswith("pool"):
        return _is_constant(named.get("wait"), False)
    is_function = name in CALLS and (not owner or owner in MODULES)
    if not is_function and (not owner or name not in METHODS or _is_false(call, named)):
        return True
    if "timeout" in named:
        return not _is_constant(named["timeout"], None)
    if not is_function and name == "get" and call.args and not _is_boolean(call.args[0]):
        return True  # of a mapping
    before = CALLS[name] if is_function else METHODS[name]
    return before is not None and len(call.args) > before and not _is_constant(call.args[before], None)


def _is_false(call: ast.Call, named: dict) -> bool:
    """`acquire(False)` and `get(block=False)` come back at once."""
    first = [*call.args[:1], *(named[name] for name in ("block", "blocking") if name in named)]
    return any(isinstance(one, ast.Constant) and one.value is False for one in first)


def _is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _is_boolean(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, bool)


def calls_without_both_timeouts(tree: ast.AST) -> Iterator[int]:
    """Lines of HTTP calls by `requests` or one of its sessions whose time-out is not a pair (connect, read)."""
    for node in ast.walk(tree):
        is_method = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if not is_method or node.func.attr not in HTTP_METHODS:
            continue
        if not ast.unparse(node.func.value).endswith(("requests", "session")):
            continue
        pairs = [keyword.value for keyword in node.keywords if keyword.arg == "timeout"]
        both = pairs[0].elts if pairs and isinstance(pairs[0], ast.Tuple) else []
        if len(both) != 2 or any(_is_constant(one, None) for one in both):
            yield node.lineno


def network_imports(tree: ast.AST) -> set[str]:
    """Modules that could speak to a machine; `urllib.parse` cannot."""
    names = {name for _, name in imported_names(tree) if not name.startswith("urllib.parse")}
    return {name for name in names if name.split(".")[0] in NETWORK}


# --- the package ------------------------------------------------------------------------------------------------


def over_rollout(finder) -> list[str]:
    return [f"{relative(path)}:{line}" for path in ROLLOUT for line in finder(parse(path))]


def test_the_client_is_looked_at():
    assert {"http_client", "request_pool", "weight_sync", "gloo", "backend"} <= {path.stem for path in ROLLOUT}


def test_no_unbounded_wait():
    assert over_rollout(unbounded_waits) == []


def test_every_http_call_has_both_timeouts():
    assert over_rollout(calls_without_both_timeouts) == []


def test_one_module_speaks_http():
    """So the rule above sees every call."""
    assert [path.stem for path in ROLLOUT if network_imports(parse(path))] == ["http_client"]
    tree = parse(PACKAGE / "rollout" / "server" / "http_client.py")
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and "session.request" in ast.unparse(node.func)
    ]
    assert len(calls) == 1


# --- the rules on examples --------------------------------------------------------------------------------------

UNBOUNDED = """
event.wait()
event.wait(None)
event.wait(timeout=None)
thread.join()
future.result()
future.exception()
queue.get()
queue.get(True)
queue.get(block=True)
lock.acquire()
condition.wait_for(ready)
dist.TCPStore(address, port)
dist.ProcessGroupGloo(store, rank, size)
wait(futures)
wait(futures, timeout=None)
futures.wait(running)
concurrent.futures.wait(running)
as_completed(futures)
socket.create_connection(place)
pool.shutdown()
pool.shutdown(wait=True)
with ThreadPoolExecutor(1) as pool: pass
"""
BOUNDED = """
event.wait(1)
event.wait(timeout=limit)
work.wait(self.timeout)
thread.join(5)
", ".join(names)
future.result(timeout=within_s)
queue.get(timeout=1)
queue.get(True, 1)
queue.get(block=False)
mapping.get(key)
lock.acquire(False)
lock.acquire(True, 2)
lock.acquire(timeout=2)
condition.wait_for(ready, 3)
dist.TCPStore(address, port, timeout=limit)
dist.ProcessGroupGloo(store, rank, size, timeout)
wait(futures, 3)
wait(futures, timeout=limit, return_when=FIRST_EXCEPTION)
as_completed(futures, timeout=limit)
socket.create_connection(place, 3)
pool.shutdown(wait=False)
connection.shutdown(socket.SHUT_RDWR)
pool = ThreadPoolExecutor(1)
"""
ONE_TIMEOUT = """
requests.get(url)
requests.post(url, timeout=3)
self.session.request("GET", url, timeout=(3, None))
session.get(url, timeout=limit)
"""


@pytest.mark.parametrize("line", UNBOUNDED.strip().splitlines())
def test_an_unbounded_wait_is_found(line: str):
    assert list(unbounded_waits(ast.parse(line))) == [1]


@pytest.mark.parametrize("line", BOUNDED.strip().splitlines())
def test_a_bounded_wait_is_left_alone(line: str):
    assert list(unbounded_waits(ast.parse(line))) == []


@pytest.mark.parametrize("line", ONE_TIMEOUT.strip().splitlines())
def test_a_call_with_one_timeout_is_found(line: str):
    assert list(calls_without_both_timeouts(ast.parse(line))) == [1]


def test_a_call_with_both_timeouts_is_left_alone():
    line = "self.session.request('GET', url, timeout=(self.connect_s, read_s))\nwire.get(url)"
    assert list(calls_without_both_timeouts(ast.parse(line))) == []


def test_another_way_to_the_network_is_found():
    tree = ast.parse("import http.client\nfrom urllib.request import urlopen\nfrom urllib.parse import urljoin")
    assert network_imports(tree) == {"http.client", "urllib.request.urlopen"}

"""A transfer between two network namespaces with a wire between them: two machines, as far as TCP can tell.

    unshare --map-root-user --net python -m tests.unit.rollout.server.two_machines

The host's name resolves to 127.0.0.1 in both, as Debian sets it up. Prints what the worker got, and from where.
"""

import json
import os
import subprocess
import sys
from datetime import timedelta

import torch

from ds_stage2ab.rollout.server.gloo import GlooLink, join

LEARNER, WORKER, MASK = "10.99.0.1", "10.99.0.2", 24
LIMIT_S = 20.0
SENT = torch.arange(1000.0)


def run(*words: str) -> None:
    subprocess.run(words, check=True, timeout=LIMIT_S)


def plug_in(end: str, address: str) -> None:
    """Bring up this namespace's end of the wire."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "addr", "add", f"{address}/{MASK}", "dev", end)
    run("ip", "link", "set", end, "up")


def learner() -> None:
    """Starts the worker in a namespace of its own, lays the wire, and sends."""
    command = ["unshare", "--net", sys.executable, "-m", __spec__.name, "worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        try:
            pid = int(worker.stdout.readline())  # in its namespace by now
            run("ip", "link", "add", "here", "type", "veth", "peer", "name", "there", "netns", str(pid))
            plug_in("here", LEARNER)
            link = GlooLink(LEARNER, None, 2, LIMIT_S)
            print(json.dumps(link.invitation()), file=worker.stdin, flush=True)
            link.join()
            link.send([SENT])
            print(worker.stdout.readline().strip())
        finally:
            worker.stdin.close()


def worker() -> None:
    print(os.getpid(), flush=True)
    told = json.loads(sys.stdin.readline())
    plug_in("there", WORKER)
    group = join(told["address"], told["port"], 1, told["size"], timedelta(seconds=told["timeout_s"]))
    tensor = torch.empty_like(SENT)
    group.finish(group.begin(tensor))
    print(json.dumps({"from": told["address"], "same": torch.equal(tensor, SENT)}), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    worker() if sys.argv[1:] == ["worker"] else learner()

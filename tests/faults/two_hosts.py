"""`train.py` under DeepSpeed's launcher on two hosts, as far as TCP and names can tell: two network namespaces.

    unshare --map-root-user --net --uts python -m tests.faults.two_hosts CONFIG [lost:STEP]

Each host starts its own rank (`--hostfile`, `--no_ssh`). `lost`: behind that step the second host's wire is cut, and it
is gone with everything on it. Prints the exit code of each host, and the seconds from the loss to the end of the first.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

HOSTS = ("host-0", "host-1")
FIRST, SECOND, MASK = "10.99.0.1", "10.99.0.2", 24
PORT = 29500
WIRE_S, RUN_S = 20.0, 300.0


def run(*words: str) -> None:
    subprocess.run(words, check=True, timeout=WIRE_S)


def plug_in(host: str, end: str, address: str) -> None:
    """Name this host, and bring up its end of the wire."""
    run("hostname", host)
    run("ip", "link", "set", "lo", "up")
    run("ip", "addr", "add", f"{address}/{MASK}", "dev", end)
    run("ip", "link", "set", end, "up")


def launcher(config: str, node: int, end: str) -> subprocess.Popen:
    """DeepSpeed's launcher on one host; what its rank says goes to this program's stderr."""
    folder = Path(config).parent
    (folder / "hostfile").write_text("".join(f"{host} slots=1\n" for host in HOSTS))
    words = ["--hostfile", str(folder / "hostfile"), "--no_ssh", "--node_rank", str(node)]
    words += ["--master_addr", FIRST, "--master_port", str(PORT), "--log_level", "error"]
    variables = {**os.environ, "GLOO_SOCKET_IFNAME": end}
    program = [str(Path(sys.executable).with_name("deepspeed")), *words, "ds_stage2ab/train.py", "--config", config]
    return subprocess.Popen(program, env=variables, stdout=sys.stderr)


def first(config: str, lost_behind: int | None) -> None:
    """Starts the second host, lays the wire, and runs rank 0."""
    host = ["unshare", "--net", "--uts", "--pid", "--fork", "--kill-child", sys.executable, "-m", __spec__.name]
    with subprocess.Popen([*host, "second", config], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as second:
        try:
            second.stdout.readline()  # it is in its namespace
            (child,) = Path(f"/proc/{second.pid}/task/{second.pid}/children").read_text().split()
            run("ip", "link", "add", "here", "type", "veth", "peer", "name", "there", "netns", child)
            plug_in(HOSTS[0], "here", FIRST)
            second.stdin.write(b"\n")
            second.stdin.flush()
            learner = launcher(config, 0, "here")
            try:
                lost = time.monotonic() if lost_behind is None else lose(second, config, lost_behind)
                code = learner.wait(RUN_S)
            finally:
                learner.kill()
            seconds = time.monotonic() - lost
            print(json.dumps({"codes": [code, second.wait(WIRE_S)], "seconds": seconds}))
        finally:
            second.kill()


def lose(second: subprocess.Popen, config: str, step: int) -> float:
    """When the second host was lost: no packet of it comes any more, not even that a connection is closed."""
    logging = json.loads(Path(config).read_text())["logging"]
    journal = Path(logging["root"]) / logging["name"] / "metrics.jsonl"
    end = time.monotonic() + RUN_S
    while not (journal.exists() and journal.read_text().count('"channel"') >= step):
        assert time.monotonic() < end, "no step was finished"
        time.sleep(0.05)
    run("ip", "link", "set", "here", "down")
    second.kill()
    return time.monotonic()


def second(config: str) -> int:
    print(flush=True)
    sys.stdin.readline()
    plug_in(HOSTS[1], "there", SECOND)
    return launcher(config, 1, "there").wait()


if __name__ == "__main__":
    if sys.argv[1] == "second":
        sys.exit(second(sys.argv[2]))
    kind, _, behind = (sys.argv[2:3] or [""])[0].partition(":")
    first(sys.argv[1], int(behind) if kind else None)

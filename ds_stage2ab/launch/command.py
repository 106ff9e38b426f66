"""`ds-stage2ab launch`: the rollout servers of a config, if any, and the learner, started and ended together.

One vLLM server for each entry of the config's server list, on this machine and its loopback address
(`launch/server_command.py`), then the learner through the DeepSpeed launcher. Importing this module imports no torch.
"""

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ds_stage2ab.config.batch import counted
from ds_stage2ab.config.load import LoadedConfig, check_config, load_config
from ds_stage2ab.config.overrides import read_overrides
from ds_stage2ab.config.problems import SET
from ds_stage2ab.config.report import as_error
from ds_stage2ab.config.rules import RULES
from ds_stage2ab.config.sections import Config, ServerSection
from ds_stage2ab.config.servers import GLOO_TRANSFER, api_key
from ds_stage2ab.config.topology_rules import topology_rules
from ds_stage2ab.engine.resume import check_resume_options, choose, resume_words
from ds_stage2ab.engine.run_folder import CONFIG_FILE, RunFolder
from ds_stage2ab.errors import EXIT_ENVIRONMENT, EXIT_STOPPED, ConfigError, EnvironmentFault
from ds_stage2ab.launch.options import VISIBLE, Topology, read_topology
from ds_stage2ab.launch.processes import LOOPBACK, Interrupted, ManagedProcess, ProcessGroup, Server, wait_until_ready
from ds_stage2ab.launch.server_command import (
    CPU_VARIABLES,
    local_port,
    refuse_drafts_of_draws,
    server_command,
    share_devices,
    with_replica_size,
)
from ds_stage2ab.launch.transfer import choose_transfer

WATCH_S = 0.5
LAST_LOOK_S = 15
"""For a server that has failed its learner to be gone too: vLLM takes seconds to shut down when its engine has died,
and its supervisor up to 8 more where something of its tree is deaf to SIGTERM."""
TELL_EVERY_S = 30
"""Between two lines of progress where they cannot be written over each other."""
OVER = "\r\033[K"
"""To the start of a terminal's line, which is cleared."""
LOGS = "launch-logs"
VLLM_KEY = "VLLM_API_KEY"
"""vLLM's own variable: a server that inherits it asks for that key, whatever the config says."""
OF_OTHER_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", VISIBLE)


def launch(options: argparse.Namespace) -> int:
    """Start everything, wait for the learner, end everything; returns the exit code.

    Raises:
        Stage2Error: nothing was started, or a server was not ready; nothing is left of it.
    """
    loaded, overrides, topology = _read_config(options)
    sections = _served(loaded.config)
    _refuse_what_cannot_start(loaded, [local_port(server.base_url) for server in sections], options)
    logs = _log_folder(loaded) if sections else None
    told = f"; logs in {logs}" if logs else ""
    with ProcessGroup() as processes:
        why = "a fault of the launcher"
        try:
            servers = _start_servers(processes, loaded, topology, options, logs) if logs else []
            if servers:
                _say(f"{counted(len(servers), 'server')} starting{told}")
                wait_until_ready(processes, servers, options.wait, _Progress(len(servers), options.wait))
            _say(f"starting the learner: {counted(topology.learners, 'rank')}")
            words, variables = learner_command(
                options.config, overrides, topology, _free_port(), resume_words(options)
            )
            learner = processes.start_learner(words, _environment(variables, sys.executable))
            code = watch(processes, learner, servers, _Trial(_run_folder(loaded).path / CONFIG_FILE))
            why = f"the learner ended with code {code}"
        except EnvironmentFault:
            why = "a server was not ready"
            raise
        except Interrupted as error:
            why = str(error)
            learns = any(process.log is None and process.code is None for process in processes.members)
            saves = "; the learner saves its last finished step, a second signal ends it at once" if learns else ""
            _say(f"{why}: stopping{saves}")
            processes.end()
            _say(f"the run is stopped: {_run_folder(loaded).newest_checkpoint_words()}")
            ended = [process.code for process in processes.members if process.log is None]
            code = (ended[0] if ended else None) or EXIT_STOPPED
        finally:
            processes.end()
            _say(f"{why}; stopped {', '.join(processes.stopped) or 'nothing'}{told}")
    return code


def learner_command(
    config: Path, overrides: list[str], topology: Topology, master_port: int, more: Sequence[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """The DeepSpeed launcher's command line, and what it adds to the environment.

    That launcher takes numbers of the driver alone and gives them to the ranks as CUDA_VISIBLE_DEVICES, so on devices
    `env` puts their names there between it and Python.

    Args:
        more: words for `train.py`.
    """
    words = [sys.executable, "-m", "deepspeed.launcher.runner", "--log_level", "error"]
    words += ["--num_gpus", str(topology.learners), "--master_port", str(master_port)]
    if topology.train:
        names = f"{VISIBLE}={','.join(topology.train)}"
        words += ["--no_python", "--no_local_rank", "env", names, sys.executable, "-u"]
    words += [str(Path(__file__).parents[1] / "train.py"), "--config", str(config), *more]
    words += [word for override in overrides for word in (SET, override)]
    return words, {} if topology.train else {"DS_ACCELERATOR": "cpu"}


def _read_config(options: argparse.Namespace) -> tuple[LoadedConfig, list[str], Topology]:
    """The config for the topology of the command line, and what the learner's command line has to set for the same."""
    overrides = list(options.overrides)
    servers = _served(load_config(options.config, read_overrides(overrides)).config)
    topology = read_topology(options, os.environ.get(VISIBLE), serves=bool(servers))
    if options.tp is not None:
        overrides.append(with_replica_size(servers, options.tp))
    rules = (*topology_rules(topology.learners, len(topology.rollout) or None), *RULES)
    checked = check_config(options.config, rules, read_overrides(overrides))
    if checked.problems:
        raise as_error(checked.problems, str(options.config), checked.document.sources)
    return load_config(options.config, read_overrides(overrides)), overrides, topology


def _served(config: Config) -> Sequence[ServerSection]:
    """The servers to start: none where the learners generate the rollouts themselves."""
    return config.rollout_matching.vllm.server.servers if config.rollout_matching.rollout_backend == "vllm" else ()


def _refuse_what_cannot_start(loaded: LoadedConfig, ports: list[int], options: argparse.Namespace) -> None:
    """What would otherwise be known after the minutes that servers take to start."""
    if sys.platform != "linux":
        raise EnvironmentFault(f"launch needs Linux, this is {sys.platform}", fix="start the processes one by one")
    python = options.server_python
    if ports and not (python.is_file() and os.access(python, os.X_OK)):
        raise ConfigError("no Python can be run there", where=str(python), fix="set --server-python to one with vLLM")
    if not (loaded.config.model.path / "config.json").is_file():
        raise EnvironmentFault("no checkpoint there", where=str(loaded.config.model.path), fix="set model.path")
    if options.drafts is not None:
        refuse_drafts_of_draws(loaded.config, serves=bool(ports))
    check_resume_options(options)
    folder = _run_folder(loaded)
    if options.resume is None:
        folder.refuse_earlier_run()
    else:
        choose(options.resume, folder.checkpoints, digests=False)  # the learner reads them
    if ports:
        api_key(loaded.config.rollout_matching.vllm.server.api_key_env)
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError as error:
                raise EnvironmentFault(
                    f"the port of a server cannot be had: {error.strerror}",
                    where=f"{LOOPBACK}:{port}",
                    fix="end the process that listens there, or set another port in base_url",
                ) from error


def _run_folder(loaded: LoadedConfig) -> RunFolder:
    return RunFolder(loaded.config.logging.root / loaded.name, locked=loaded.config.logging.lock)


def _log_folder(loaded: LoadedConfig) -> Path:
    folder = loaded.config.logging.root / f"{loaded.name}.{LOGS}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fix = "set logging.root to a folder that you may write to"
        raise EnvironmentFault(f"cannot be made: {error.strerror}", where=str(folder), fix=fix) from error
    return folder


def _start_servers(
    processes: ProcessGroup, loaded: LoadedConfig, topology: Topology, options: argparse.Namespace, logs: Path
) -> list[Server]:
    config, attempt, python = loaded.config, _run_folder(loaded).next_attempt(), options.server_python
    sections = _served(config)
    servers = []
    key = api_key(config.rollout_matching.vllm.server.api_key_env)
    transfer = _transfer(processes, topology, python)
    for section, devices in zip(sections, share_devices(sections, topology.rollout), strict=True):
        processes.check()
        words, variables = server_command(
            config, section, python=python, devices=devices, transfer=transfer, drafts=options.drafts
        )
        own = CPU_VARIABLES.keys() & variables.keys() & os.environ.keys()
        variables |= {name: os.environ[name] for name in own}
        port = local_port(section.base_url)
        name = f"server {section.base_url}"
        environment = with_key(_environment(variables, python), key)
        process = processes.start(name, words, environment, logs / log_name(port, attempt))
        servers.append(Server(url=section.base_url, port=port, process=process))
    return servers


def log_name(port: int, attempt: int) -> str:
    """The file to which the server of a port writes in one start of the run."""
    return f"server-{port}.attempt-{attempt}.log"


def with_key(environment: dict[str, str], key: str | None) -> dict[str, str]:
    """A server's environment in which it asks for this key, and for no other that this process has inherited."""
    others = {name: value for name, value in environment.items() if name != VLLM_KEY}
    return others if key is None else {**others, VLLM_KEY: key}


def _transfer(processes: ProcessGroup, topology: Topology, python: Path) -> str:
    if not topology.rollout:
        return GLOO_TRANSFER
    engine, why = choose_transfer(Path(sys.executable), python, processes.pause)
    _say(f"weights travel over {engine}: {why}")
    return engine


def watch(processes: ProcessGroup, learner: ManagedProcess, servers: list[Server], tell: Callable[[], None]) -> int:
    """The learner's exit code. A server that ends is reported: the learner notices at its next request, saves and ends.

    The learner may be the quicker one: a dead engine answers with an error at once, its server ends seconds later. So
    a learner that ends with code 4 before any server has ended is no reason yet to end them.

    Args:
        tell: called in each round while the learner lives.

    Raises:
        Interrupted: a signal came.
    """
    living = servers
    while (code := learner.code) is None:
        tell()
        living = _tell_of_ended(living)
        processes.pause(WATCH_S)
    living = _tell_of_ended(living)
    if code == EXIT_ENVIRONMENT and len(living) == len(servers):
        _say(f"the learner ended with code {code}; a server that ends too is waited for, {LAST_LOOK_S} s at most")
        for _ in range(round(LAST_LOOK_S / WATCH_S)):
            processes.pause(WATCH_S)
            if len(_tell_of_ended(servers)) < len(servers):
                break
    return code


def _tell_of_ended(servers: list[Server]) -> list[Server]:
    """Those that live; each other one is shown with its last words."""
    codes = [server.process.code for server in servers]
    for server, code in zip(servers, codes, strict=True):
        if code is not None:
            _say(f"{server.process.name} ended with code {code}{server.process.last_words()}")
    return [server for server, code in zip(servers, codes, strict=True) if code is None]


def _environment(variables: dict[str, str], python: Path | str) -> dict[str, str]:
    """This process's own, without what another launcher left, with the tools beside a Python first on PATH."""
    inherited = {name: value for name, value in os.environ.items() if name not in OF_OTHER_LAUNCHERS}
    path = f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**inherited, "PATH": path, **variables}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


class _Progress:
    """How many servers are ready: one line that changes on a terminal, a line now and then elsewhere."""

    def __init__(self, servers: int, longest_s: float) -> None:
        self.servers = servers
        self.longest_s = longest_s
        self._ready = -1
        self._told_s = 0.0

    def __call__(self, ready: int, waited_s: float) -> None:
        line = f"{ready} of {counted(self.servers, 'server')} ready, {waited_s:.0f} s of {self.longest_s:.0f}"
        if sys.stderr.isatty():
            print(f"{OVER}launch: {line}", end="\n" if ready == self.servers else "", file=sys.stderr, flush=True)
        elif ready != self._ready or waited_s - self._told_s >= TELL_EVERY_S:
            _say(line)
            self._told_s = waited_s
        self._ready = ready


class _Trial:
    """A line now and then until the learner makes its run folder.

    It does so when it has found the servers right: after the handshake, the first transfer of weights and a probe.
    Whole lines on a terminal too: the learner writes there meanwhile.
    """

    def __init__(self, sign: Path) -> None:
        self.sign = sign
        self._before = _changed(sign)
        self._begun = self._told = time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._told >= TELL_EVERY_S and _changed(self.sign) == self._before:
            _say(f"the learner has not yet found the servers right, {now - self._begun:.0f} s")
            self._told = now


def _changed(path: Path) -> float | None:
    """When a file was last changed; None: it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _say(line: str) -> None:
    start = OVER if sys.stderr.isatty() else ""
    print(f"{start}launch: {line}", file=sys.stderr, flush=True)

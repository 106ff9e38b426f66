"""vLLM's command line, as pure functions of the config; `rollout/server/handshake.py` checks the same flags."""

import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from ds_stage2ab.config.decoding_rules import DECODING, EVALUATION_DECODING
from ds_stage2ab.config.sections import Config, ServerSection
from ds_stage2ab.config.servers import GLOO_TRANSFER, MODEL_NAME, SERVERS, replicas_of
from ds_stage2ab.errors import ConfigError
from ds_stage2ab.launch.options import VISIBLE
from ds_stage2ab.launch.processes import LOOPBACK

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
CPU_VARIABLES = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    # Engine and worker in one process: of two, the engine waits for the worker in a busy loop, on a core of its own.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
"""Of a server without devices; a shell that sets one of them has its way."""
PROPOSER = "ds_stage2ab.rollout.server.vllm_drafts.Drafts"
LOCAL_NAMES = (LOOPBACK, "localhost")


def share_devices(servers: Sequence[ServerSection], devices: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The devices of each server, in order: equally many replicas each; without devices, none each.

    Raises:
        ConfigError: they do not make whole replicas, equally many per server.
    """
    if not devices:
        return [() for _ in servers]
    sizes = [server.tensor_parallel_size for server in servers]
    counts = [size * replicas for size, replicas in zip(sizes, replicas_of(sizes, len(devices)), strict=True)]
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    return [devices[end - count : end] for end, count in zip(ends, counts, strict=True)]


def local_port(base_url: str) -> int:
    """The port of a server that can be started here.

    Raises:
        ConfigError: the address is on another machine, or has no port.
    """
    parts = urlsplit(base_url)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "http" or parts.hostname not in LOCAL_NAMES or not port:
        raise ConfigError(
            f"{base_url} cannot be started here: launch starts servers at http://{LOOPBACK} and a port",
            where=SERVERS,
            fix=f"set base_url to http://{LOOPBACK}:8000 or another port up to 65535; servers elsewhere are started by"
            " you, and the learner with deepspeed ds_stage2ab/train.py",
        )
    return port


def server_command(
    config: Config,
    server: ServerSection,
    *,
    python: Path,
    devices: tuple[str, ...],
    transfer: str = GLOO_TRANSFER,
    drafts: int | None = None,
) -> tuple[list[str], dict[str, str]]:
    """The command line of one rollout server, and its additional environment variables.

    Args:
        python: of the environment that has vLLM.
        devices: of this server, whole replicas, as CUDA_VISIBLE_DEVICES names them; none: the CPU.
        transfer: the weight transfer engine.
        drafts: tokens that it drafts ahead, at most; None: it does not.
    """
    options = {
        "--model": str(config.model.path),
        "--served-model-name": MODEL_NAME,
        "--host": LOOPBACK,
        "--port": str(local_port(server.base_url)),
        "--dtype": DTYPES[config.model.precision],
        "--max-model-len": str(config.training.global_max_length),
        "--max-num-seqs": str(config.rollout_matching.decode_batch_size),  # of each replica
        "--generation-config": "vllm",  # not the checkpoint's
        "--logprobs-mode": "raw_logprobs",
        "--limit-mm-per-prompt": json.dumps({"image": 1, "video": 0}),
        "--weight-transfer-config": json.dumps({"backend": transfer}),
        "--tensor-parallel-size": str(server.tensor_parallel_size),
        "--data-parallel-size": str(max(1, len(devices) // server.tensor_parallel_size)),
    }
    pixels = {"min_pixels": config.data.min_pixels, "max_pixels": config.data.max_pixels}
    pixels = {name: area for name, area in pixels.items() if area is not None}
    if pixels:
        options["--mm-processor-kwargs"] = json.dumps(pixels)
    if drafts:
        ahead = {"method": "custom_class", "model": PROPOSER, "num_speculative_tokens": drafts}
        options["--speculative-config"] = json.dumps(ahead)
    words = [str(python), "-m", "vllm.entrypoints.openai.api_server", *(w for pair in options.items() for w in pair)]
    environment = {"VLLM_SERVER_DEV_MODE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    words += ["--enable-scale-out", "--no-mm-device-do-normalize"]  # opens /render; pixels as the learner's
    if devices:
        return words, {**environment, VISIBLE: ",".join(devices)}
    return [*words, "--enforce-eager"], {**environment, **CPU_VARIABLES}


def refuse_drafts_of_draws(config: Config, *, serves: bool) -> None:
    """A server that drafts leaves out the draws of this package; the handshake would say so, minutes later.

    Raises:
        ConfigError: some answers are drawn above temperature 0, or there are no servers.
    """
    if not serves:
        raise ConfigError("--drafts is for rollout servers, and this config has none", fix="leave --drafts out")
    sections = {DECODING: config.rollout_matching.decoding, EVALUATION_DECODING: config.evaluation.decoding}
    for key, section in sections.items():
        if section.temperature > 0:
            raise ConfigError(
                f"{section.temperature:g} draws answers, and a server with --drafts would sample others",
                where=f"{key}.temperature",
                fix=f"leave --drafts out, or set {key}.temperature to 0",
            )


def with_replica_size(servers: Sequence[ServerSection], size: int) -> str:
    """The `--set` that makes every replica of the config's servers span `size` devices, for servers and learner."""
    entries = [
        {"base_url": server.base_url, "group_port": server.group_port, "tensor_parallel_size": size}
        for server in servers
    ]
    return f"{SERVERS}={json.dumps(entries)}"

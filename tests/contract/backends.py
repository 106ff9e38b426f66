"""Backends made of real parts in this process: one rank, a real server, recordings of what a model has drawn."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from ds_stage2ab.carriers import Rollout, Sample
from ds_stage2ab.config.sections import ServerSection
from ds_stage2ab.data.records import read_records
from ds_stage2ab.engine.build import position_index, start_process_group
from ds_stage2ab.engine.tuner import merged_tensors
from ds_stage2ab.engine.whole_model import WholeModel
from ds_stage2ab.rollout.base import RolloutBackend, Sampling
from ds_stage2ab.rollout.hf import HfBackend
from ds_stage2ab.rollout.record import RolloutLog
from ds_stage2ab.rollout.replay import ReplayBackend, read_recording
from ds_stage2ab.rollout.server.backend import VllmBackend
from ds_stage2ab.rollout.server.connect import open_servers
from ds_stage2ab.runtime.ranks import World, fill_launcher_variables
from tests.parts import Quickstart
from tests.unit.parts import MATCHING, Bench, load_bench
from tests.unit.serving import needs_of, without_loss
from tests.vllm_process import MAX_PIXELS

TOLERANCE = 1e-3  # of the probe: nats per token, in fp32
SEED = 42
PATIENT_S = 120.0  # a server's first answer on a busy machine

Asked = tuple[int, Sequence[Sample]]
"""(finished steps, what is asked for then)."""


@contextmanager
def one_rank() -> Iterator[World]:
    """The process group of this one process; the launcher's variables are gone afterwards."""
    with mock.patch.dict(os.environ):
        fill_launcher_variables()
        yield World(start_process_group(1800))


def limited_bench(parts: Quickstart, num_samples: int) -> Bench:
    """Model and samples as a run reads them whose images, like the server's, are reduced to `MAX_PIXELS`."""
    bench = load_bench(parts, num_samples=0)
    image_processor = bench.encoder.image_processor
    image_processor.size = {**dict(image_processor.size), "longest_edge": MAX_PIXELS}
    records = islice(read_records(parts.data / "train.jsonl", image_root=None, box_format="bins"), num_samples)
    return replace(bench, samples=[bench.encoder.encode(record, draw) for draw, record in enumerate(records)])


@contextmanager
def disturbed(module: nn.Module) -> Iterator[None]:
    """Inside, its weights are other ones."""
    before = [parameter.detach().clone() for parameter in module.parameters()]
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    try:
        yield
    finally:
        for parameter, own in zip(module.parameters(), before, strict=True):
            parameter.data.copy_(own)


def by_model(bench: Bench, world: World, *, start_id: str, decode_batch_size: int = 4) -> HfBackend:
    """Draws by the model of the bench itself."""
    provider = WholeModel(bench.model, world, is_partitioned=False)
    positions = position_index(bench.model)
    settings = {"decode_batch_size": decode_batch_size, "start_id": start_id, "seed": SEED}
    return HfBackend(provider, bench.vocabulary, positions, **settings)


def by_server(
    bench: Bench,
    base_url: str,
    world: World,
    *,
    start_id: str,
    sync_s: float = 60.0,
    draws: bool = True,
    more: Sequence[str] = (),
    decode_batch_size: int = 4,
) -> VllmBackend:
    """Draws by a real server that gets the weights of the bench's model; `more` are the addresses of others."""
    named = [ServerSection(base_url=url, group_port=None, tensor_parallel_size=1) for url in (base_url, *more)]
    servers = replace(MATCHING.vllm.server, servers=tuple(named))
    return open_servers(
        replace(MATCHING.vllm, server=servers, sync=replace(MATCHING.vllm.sync, timeout_s=sync_s)),
        replace(needs_of(bench, infer_timeout_s=PATIENT_S, draws=draws), decode_batch_size=decode_batch_size),
        position_index(bench.model),
        WholeModel(bench.model, world, is_partitioned=False),
        lambda: merged_tensors(bench.model),
        world,
        start_id=start_id,
        seed=SEED,
        probe_tolerance=TOLERANCE,
    )


def by_recording(
    drawing: RolloutBackend, sampling: Sampling, asked: Sequence[Asked], folder: Path, *, start_id: str
) -> ReplayBackend:
    """Gives back what another backend draws now."""
    log = RolloutLog(folder / "rollouts", 0)
    for finished_steps, samples in asked:
        log(finished_steps, drawn(drawing, samples, sampling, finished_steps))
    return ReplayBackend(read_recording(folder), start_id=start_id, seed=SEED)


def drawn(backend: RolloutBackend, samples: Sequence[Sample], sampling: Sampling, steps: int) -> list[Rollout]:
    """All rollouts of these samples, with the weights after so many steps."""
    with backend.current_weights(steps):
        return without_loss(backend.generate(list(samples), sampling, finished_steps=steps))

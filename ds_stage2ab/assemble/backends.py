"""Who samples the rollouts of a run: this process, servers, or a recording."""

from ds_stage2ab.assemble.inputs import Parts
from ds_stage2ab.codec.text import get_codec
from ds_stage2ab.data.datasets import SKIP
from ds_stage2ab.data.stream import evaluation_draw
from ds_stage2ab.engine.build import (
    position_index,
)
from ds_stage2ab.engine.tuner import merged_tensors
from ds_stage2ab.engine.whole_model import WholeModel
from ds_stage2ab.rollout.base import RolloutBackend
from ds_stage2ab.rollout.hf import HfBackend
from ds_stage2ab.rollout.replay import ReplayBackend
from ds_stage2ab.rollout.server.chat import Conversation
from ds_stage2ab.rollout.server.connect import open_servers
from ds_stage2ab.rollout.server.handshake import Requirements
from ds_stage2ab.rollout.server.weight_sync import usable_transfers


def make_backend(parts: Parts, whole_model: WholeModel, start_id: str) -> RolloutBackend:
    if parts.config.rollout_matching.rollout_backend == "vllm":
        return _servers(parts, whole_model, start_id)
    return HfBackend(
        whole_model,
        parts.vocabulary,
        position_index(parts.source.model),
        decode_batch_size=parts.config.rollout_matching.decode_batch_size,
        start_id=start_id,
        seed=parts.config.training.seed,
        check_stop=parts.world.check_stop,
        codec=get_codec(parts.config.data.codec),
    )


def _servers(parts: Parts, whole_model: WholeModel, start_id: str) -> RolloutBackend:
    """The largest image is what servers are tried with, in the handshake and in every probe: limits show there."""
    config, data = parts.config, parts.config.data
    with parts.world.raise_together("reading the sample that the rollout servers are tried with"):
        train = [parts.asked_train(record, evaluation_draw(0)) for record in parts.datasets.train]
        sample = parts.encoder.largest(train, evaluation_draw(0), skip_bad=data.on_bad_sample == SKIP)
    requirements = Requirements(
        conversation=Conversation(
            system_prompt=data.system_prompt,
            forbidden=tuple(parts.source.tokenizer.convert_ids_to_tokens(list(parts.vocabulary.vision_ids))),
            stop_id=parts.vocabulary.stop_id,
            coordinate_ids=parts.vocabulary.coordinate_ids,
        ),
        vocabulary=parts.vocabulary,
        sample=sample,
        decode_batch_size=config.rollout_matching.decode_batch_size,
        room=parts.longest_prompt + config.rollout_matching.max_new_tokens,
        precision=config.model.precision,
        infer_timeout_s=parts.plan.infer_timeout_s,
        transfers=usable_transfers(parts.world.device),
        draws=config.rollout_matching.decoding.temperature > 0 or config.evaluation.decoding.temperature > 0,
    )
    return open_servers(
        config.rollout_matching.vllm,
        requirements,
        position_index(parts.source.model),
        whole_model,
        lambda: merged_tensors(whole_model.layout),
        parts.world,
        start_id=start_id,
        seed=config.training.seed,
        probe_tolerance=parts.plan.probe_tolerance,
    )


def sampled_or_replayed(parts: Parts, backend: RolloutBackend, start_id: str) -> RolloutBackend:
    """The backend of Channel B. Evaluations are not recorded, so `backend` samples those in a replay too."""
    if parts.recording is None:
        return backend
    return ReplayBackend(parts.recording, start_id=start_id, seed=parts.config.training.seed)

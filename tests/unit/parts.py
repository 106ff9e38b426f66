"""The tiny model in pieces: encoder, samples, segments and the objective, as the composition root builds them.

Beside it, rollouts that were written beforehand: Channel B without waiting for a model to find the right mistakes.
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from typing import Any

import torch
from torch import nn

from ds_stage2ab.carriers import Rollout, Sample, Segment
from ds_stage2ab.channels.expectation import Expectation
from ds_stage2ab.channels.rollout_matching import RolloutMatching
from ds_stage2ab.codec.text import get_codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.config.sections import (
    ChannelBSection,
    DecodingSection,
    HealthSection,
    ModelSection,
    RepeatTerminateSection,
    ReplaySection,
    RolloutMatchingSection,
    ScheduleSection,
    Stage2ABSection,
    ThresholdSection,
    VllmProbeSection,
    VllmSection,
    VllmServerSection,
    VllmSyncSection,
)
from ds_stage2ab.data.encode import Encoder
from ds_stage2ab.data.records import read_records
from ds_stage2ab.engine.build import load_checkpoint, position_index
from ds_stage2ab.losses.objective import Objective
from ds_stage2ab.rollout.base import Sampling, weight_version
from ds_stage2ab.runtime.timers import Clock
from tests.parts import Quickstart

HEALTH_KEYS = ("predicted_per_true", "truncation_rate", "drop_rate", "valid_rate", "coord_mass")
PLAIN_LOSS = Stage2ABSection(
    schedule=ScheduleSection(b_ratio=Fraction(0)),
    channel_b=ChannelBSection(
        target="rewrite",
        rewrite_order=None,
        keep_spurious=False,
        drop_invalid_struct_ce_multiplier=1.0,
        health=HealthSection(
            patience=2, **dict.fromkeys(HEALTH_KEYS, ThresholdSection(warn=None, stop=None))
        ),
    ),
    n_softctx_iter=1,
    softctx_grad_mode="unroll",
    softctx_temperature=1.0,
    desc_ce_weight=1.0,
    bbox_smoothl1_weight=1.0,
    bbox_smoothl1_beta=0.05,
    bbox_ciou_weight=1.0,
    coord_gate_weight=1.0,
    coord_soft_ce_weight=1.0,
    coord_target_sigma=2.0,
    coord_w1_weight=1.0,
    coord_ce_weight=1.0,
    coord_el1_weight=0.5,
    coord_ehuber_weight=0.5,
    coord_huber_delta=0.001,
    coord_entropy_weight=0.25,
    score_weight=1.0,
    noise_objects=0,
)
"""Every term switched on."""

NO_GUARD = RepeatTerminateSection(max_token_run=None, ngram_size=None, max_ngram_repeats=None, max_objects=None)
MATCHING = RolloutMatchingSection(
    rollout_backend="hf",
    vllm=VllmSection(
        mode="server",
        server=VllmServerSection(
            servers=(),
            api_key_env=None,
            timeout_s=30,
            infer_timeout_s=None,
            recover_s=0,
            on_lost="fail",
            servers_file=None,
        ),
        sync=VllmSyncSection(mode="auto", bucket_mb=256, timeout_s=300),
        probe=VllmProbeSection(tolerance=None, every_syncs=1),
    ),
    replay=ReplaySection(run=None),
    decode_batch_size=4,
    max_new_tokens=64,
    best_of=1,
    decoding=DecodingSection(temperature=0.7, top_p=0.9, top_k=50),
    repetition_penalty=1.1,
    repeat_terminate=NO_GUARD,
    candidate_top_k=10,
    iou_gate=0.3,
    fp_cost=1.0,
    fn_cost=1.0,
)
START_ID = "start"


def greedy_sampling(**changes: Any) -> Sampling:
    """The most probable tokens, unless `changes` say otherwise; no guard, no probabilities."""
    values = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "max_new_tokens": 64}
    guarded = {"repeat_terminate": NO_GUARD, "coordinates_per_object": 4}
    return Sampling(**{**values, **guarded, "with_probabilities": False, **changes})


class WrittenBackend:
    """A backend whose answers were written beforehand; it keeps what it was asked for.

    Args:
        answers: draw -> response ids, the stop token left out.
        truncated: draws whose answer reached the token limit.
        start_id: of the weights that the answers claim to come from.
        steps_behind: how many steps older than the learner they claim to be.
    """

    streams = False
    probe_gap = None
    transfer = None
    decoding = None
    generate_lazily = None

    def __init__(self, answers, *, truncated=(), start_id=START_ID, steps_behind=0):
        self.answers = answers
        self.truncated = truncated
        self.start_id = start_id
        self.steps_behind = steps_behind
        self.asked = []

    def current_weights(self, finished_steps, *, generates_once=False):
        return nullcontext()

    def generate(self, samples, sampling, *, finished_steps):
        self.asked.append(([sample.draw for sample in samples], sampling, finished_steps))
        return [
            Rollout(
                sample_id=sample.id,
                draw=sample.draw,
                prompt_ids=sample.prompt_ids,
                response_ids=tuple(self.answers[sample.draw]),
                finish="length" if sample.draw in self.truncated else "stop",
                weight_version=weight_version(self.start_id, finished_steps - self.steps_behind),
                seed=7,
                source="written",
                seconds=0.5,
                attempt=1,
                probabilities=None,
            )
            for sample in samples
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A loaded model and what it needs to learn."""

    model: nn.Module
    vocabulary: Vocabulary
    encoder: Encoder
    samples: list[Sample]

    def segments(self, **changes: Any) -> list[Segment]:
        plain = {"num_passes": 1, "desc_ce_weight": 1.0, "num_noise": 0, "seed": 0}
        settings = {**plain, "max_length": 4096, "skip_overlong": False, **changes}
        channel = Expectation(get_codec("array"), self.vocabulary, position_index(self.model), **settings)
        return list(channel.segments(self.samples, step=0, clock=Clock()))

    def dummy_segment(self) -> Segment:
        """What a rank without packs runs: a blank image with one box."""
        return replace(self, samples=[self.encoder.blank([])]).segments()[0]

    def rollout_matching(
        self, backend: WrittenBackend, record: Any = lambda *_: None, **changes: Any
    ) -> RolloutMatching:
        plain = {"section": MATCHING, "targets": PLAIN_LOSS.channel_b, "desc_ce_weight": 1.0}
        settings = {**plain, "max_length": 4096, "skip_overlong": False, "skip_refused": False, **changes}
        return RolloutMatching(
            backend,
            START_ID,
            record,
            codec=get_codec("array"),
            vocabulary=self.vocabulary,
            positions=position_index(self.model),
            **settings,
        )

    def objective(self, **changes: Any) -> Objective:
        return Objective(self.model, torch.tensor(self.vocabulary.coordinate_ids), replace(PLAIN_LOSS, **changes))


def model_section(parts: Quickstart) -> ModelSection:
    return ModelSection(
        path=parts.model, attn_implementation="sdpa", precision="fp32", freeze=(), gradient_checkpointing=False
    )


def load_bench(parts: Quickstart, num_samples: int) -> Bench:
    """The freshly initialised tiny model in fp32 and its first samples."""
    checkpoint = load_checkpoint(model_section(parts), min_pixels=None, max_pixels=None)
    vocabulary = Vocabulary.from_tokenizer(checkpoint.tokenizer)
    encoder = Encoder(
        checkpoint.tokenizer,
        checkpoint.image_processor,
        vocabulary,
        system_prompt=None,
        user_prompt="Detect every digit.",
    )
    records = read_records(parts.data / "train.jsonl", image_root=None, box_format="bins")
    samples = [encoder.encode(record, draw) for draw, record in enumerate(islice(records, num_samples))]
    return Bench(model=checkpoint.model, vocabulary=vocabulary, encoder=encoder, samples=samples)

"""The tiny model in pieces: encoder, samples, segments and the objective, as the composition root builds them."""

from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from typing import Any

import torch
from torch import nn

from ds_stage2ab.carriers import Sample, Segment
from ds_stage2ab.channels.expectation import Expectation
from ds_stage2ab.codec.text import get_codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.config.sections import ModelSection, ScheduleSection, Stage2ABSection
from ds_stage2ab.data.encode import Encoder
from ds_stage2ab.data.records import read_records
from ds_stage2ab.engine.build import load_checkpoint, position_index
from ds_stage2ab.losses.objective import Objective
from tests.parts import Quickstart

PLAIN_LOSS = Stage2ABSection(
    schedule=ScheduleSection(b_ratio=Fraction(0)),
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
)
"""Every term switched on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A loaded model and what it needs to learn."""

    model: nn.Module
    vocabulary: Vocabulary
    encoder: Encoder
    samples: list[Sample]

    def segments(self, **changes: Any) -> list[Segment]:
        settings = {"num_passes": 1, "desc_ce_weight": 1.0, "max_length": 4096} | changes
        channel = Expectation(get_codec("array"), self.vocabulary, position_index(self.model), **settings)
        return channel.segments(self.samples, step=0)

    def objective(self, **changes: Any) -> Objective:
        return Objective(self.model, torch.tensor(self.vocabulary.coordinate_ids), replace(PLAIN_LOSS, **changes))


def load_bench(parts: Quickstart, num_samples: int) -> Bench:
    """The freshly initialised tiny model in fp32 and its first samples."""
    section = ModelSection(
        path=parts.model, attn_implementation="sdpa", precision="fp32", freeze=(), gradient_checkpointing=False
    )
    checkpoint = load_checkpoint(section, min_pixels=None, max_pixels=None)
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

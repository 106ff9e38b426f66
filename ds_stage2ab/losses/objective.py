"""The objective: a pack goes in, the sum of its samples' losses and its terms come out.

The module that DeepSpeed wraps. It does not scale: the means over samples, ranks and packs are taken in
`engine.window`. Contract of `forward`: `loss` is the plain sum over the pack's segments of

    sample loss = text CE + sum over terms of weight * mean of the term over the sample's slots or boxes

with text CE = sum(w ce) / sum(w). A term without any position is zero. Only supervised positions get logits.
"""

import torch
from torch import Tensor, nn

from ds_stage2ab.carriers import Pack
from ds_stage2ab.codec.bins import MAX_BIN
from ds_stage2ab.config.sections import Stage2ABSection
from ds_stage2ab.losses.attention import segment_arguments
from ds_stage2ab.losses.boxes import complete_iou_loss, smooth_l1
from ds_stage2ab.losses.coordinates import (
    SlotDistribution,
    coordinate_of,
    coordinate_terms,
    expected_coordinate,
    slot_distribution,
)
from ds_stage2ab.losses.score import score_term
from ds_stage2ab.losses.text import token_cross_entropy, weighted_sample_mean

SCORE_TERM = "score"
BOX_TERMS = ("bbox_smoothl1", "bbox_ciou")
COORDINATE_TERMS = (
    "coord_soft_ce", "coord_w1", "coord_gate", "coord_ce", "coord_el1", "coord_ehuber", "coord_entropy",
)  # fmt: skip
WEIGHTED_TERMS = (*BOX_TERMS, *COORDINATE_TERMS, SCORE_TERM)
DIAGNOSTICS = ("loss/desc_ce", "coord/mass", "coord/mean_abs_error_bins")
TERM_NAMES = (
    "loss/total", "loss/text_ce", *(f"loss/{name}" for name in WEIGHTED_TERMS), *DIAGNOSTICS,
)  # fmt: skip
"""Every name in the terms of `forward`, the same for every pack."""


class Objective(nn.Module):
    """Pack -> (loss, terms) for a Qwen3-VL-like model.

    Args:
        model: a `Qwen3VLForConditionalGeneration` (or a peft wrapper of one).
        coordinate_ids: long [1000], the token id of each bin.
        section: loss weights and the settings of the expectation loop.
    """

    def __init__(self, model: nn.Module, coordinate_ids: Tensor, section: Stage2ABSection) -> None:
        super().__init__()
        self.model = model
        self.section = section
        self.weights = {name: getattr(section, f"{name}_weight") for name in WEIGHTED_TERMS}
        self.register_buffer("coordinate_ids", coordinate_ids, persistent=False)

    def forward(self, pack: Pack) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """The sum of the sample losses (0-d fp32) and name -> detached (sum, count), for `TERM_NAMES`.

        For a dummy pack both are zero, and the loss still depends on every parameter used.
        """
        num_samples = len(pack.boundaries) - 1
        supervised_M = pack.weights.nonzero().squeeze(-1)
        text_logits_MV, slot_logits_MV = self._expectation_loop(pack, supervised_M - 1)

        ce_M = token_cross_entropy(text_logits_MV, pack.input_ids[supervised_M])
        sample_of_M = pack.segment_of[supervised_M]
        per_sample = {"text_ce": weighted_sample_mean(ce_M, pack.weights[supervised_M], sample_of_M, num_samples)}
        both = slot_distribution(slot_logits_MV, self.coordinate_ids)
        slots, scores = both.split(len(pack.slots))
        per_sample |= self._geometry_terms(slots, pack, num_samples)
        score_K = score_term(scores, pack.score_bins)
        sample_of_K = pack.segment_of[pack.score_slots]
        per_sample[SCORE_TERM] = weighted_sample_mean(score_K, torch.ones_like(score_K), sample_of_K, num_samples)

        total_S = per_sample["text_ce"] + sum(weight * per_sample[name] for name, weight in self.weights.items())
        real = float(pack.real)
        per_sample["total"] = total_S
        terms = {f"loss/{name}": _summed(values_S, real) for name, values_S in per_sample.items()}
        terms |= _diagnostics(ce_M, pack.is_desc[supervised_M], slots, pack.bins, real)
        return total_S.sum() * real, terms

    def _expectation_loop(self, pack: Pack, text_rows: Tensor) -> tuple[Tensor, Tensor]:
        """Logits that predict the supervised tokens (first pass), and the coordinate slots and scores (last pass).

        Pass 0 reads the tokens themselves; each further pass reads, at every coordinate slot, the embedding
        that the pass before predicted there. The vision tower runs once.
        """
        vision = self.model.get_image_features(pack.vision.pixel_values, pack.vision.image_grid_thw, return_dict=True)
        embed, detach = self.model.get_input_embeddings(), self.section.softctx_grad_mode == "em_detach"
        slot_rows = torch.cat([pack.slots, pack.score_slots]) - 1
        text_logits = slot_logits = None
        for index in range(pack.num_passes):
            first, last = index == 0, index == pack.num_passes - 1
            with torch.set_grad_enabled(torch.is_grad_enabled() and (first or last or not detach)):
                # Embedded again in each pass: placeholder rows must stay bitwise what the model compares with.
                inputs_TD = embed(pack.input_ids)
                if not first:
                    boxes_MV = slot_logits[: len(pack.slots)]
                    expected_MD = self._expected_embedding(boxes_MV.detach() if detach else boxes_MV)
                    expected_MD = expected_MD.detach() if detach else expected_MD
                    inputs_TD = inputs_TD.index_copy(0, pack.slots, expected_MD.to(inputs_TD.dtype))
                rows = torch.cat([text_rows, slot_rows]) if first else slot_rows
                logits = self._logits(inputs_TD, pack, vision, rows)
            if first:
                text_logits, logits = logits.split([len(text_rows), len(slot_rows)])
            slot_logits = logits
        return text_logits, slot_logits

    def _expected_embedding(self, slot_logits_MV: Tensor) -> Tensor:
        """sum_k p_k e_k over the coordinate tokens, p at `softctx_temperature`, in fp32: [M, D]."""
        inside_MK = slot_logits_MV.index_select(-1, self.coordinate_ids).float()
        p_MK = torch.softmax(inside_MK / self.section.softctx_temperature, dim=-1)
        return p_MK @ self.model.get_input_embeddings()(self.coordinate_ids).float()

    def _logits(self, inputs_TD: Tensor, pack: Pack, vision: object, rows: Tensor) -> Tensor:
        """Logits [rows, V] of one packed forward.

        Exactly this form is block-diagonal: four rows of positions, no mask of ours, no cache. With a cache, a mask
        or three rows of positions the model silently attends across segments.
        """
        return self.model(
            inputs_embeds=inputs_TD[None],
            position_ids=pack.position_ids[:, None],
            use_cache=False,
            logits_to_keep=rows,
            mm_encoder_outputs={"image": vision},
            **segment_arguments(self.model, pack.boundaries),
        ).logits[0]

    def _geometry_terms(self, slots: SlotDistribution, pack: Pack, num_samples: int) -> dict[str, Tensor]:
        """Box and coordinate terms, each the mean over a sample's boxes or slots: name -> [S]."""
        sample_of_slot = pack.segment_of[pack.slots]
        ones = torch.ones_like(sample_of_slot, dtype=torch.float32)
        predicted_N4 = expected_coordinate(slots.log_p_MK).view(-1, 4)
        target_N4 = coordinate_of(pack.bins).view(-1, 4)
        per_box = {
            "bbox_smoothl1": smooth_l1(predicted_N4, target_N4, self.section.bbox_smoothl1_beta),
            "bbox_ciou": complete_iou_loss(predicted_N4, target_N4),
        }
        per_slot = coordinate_terms(
            slots, pack.bins, sigma=self.section.coord_target_sigma, huber_delta=self.section.coord_huber_delta
        )
        return {
            name: weighted_sample_mean(values, ones[: len(values)], sample_of, num_samples)
            for group, sample_of in ((per_box, sample_of_slot[::4]), (per_slot, sample_of_slot))
            for name, values in group.items()
        }


def _summed(values: Tensor, real: float) -> tuple[Tensor, Tensor]:
    values = values.detach().double()
    return values.sum() * real, values.new_tensor(len(values) * real)


def _diagnostics(
    ce_M: Tensor, is_desc_M: Tensor, slots: SlotDistribution, bins: Tensor, real: float
) -> dict[str, tuple[Tensor, Tensor]]:
    """Figures that are reported and never optimised."""
    error = (expected_coordinate(slots.log_p_MK) - coordinate_of(bins)).abs() * MAX_BIN
    return {
        "loss/desc_ce": _summed(ce_M[is_desc_M], real),
        "coord/mass": _summed(slots.log_mass_M.exp(), real),
        "coord/mean_abs_error_bins": _summed(error, real),
    }

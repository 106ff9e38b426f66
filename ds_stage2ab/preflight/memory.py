"""Memory of one learner by arithmetic, from the checkpoint's `config.json` alone. No torch, no weights.

Parameters are counted exactly; bytes are an estimate: what a training step has to keep, without the space that CUDA,
the allocator and the kernels take for themselves (about 1 to 3 GiB).

Legend: h width of the language model, L its layers, q and k the widths of all query and of all key heads, i the inner
width of its MLP, V rows of the vocabulary; w, u, D the same of the vision tower (width, inner width, depth), m its
merge size; T tokens of a pack; e bytes of a value (4 in fp32, 2 in bf16); c = 4 / e, values of an fp32 copy; P
parameters, P_t those of them that train; W learner ranks; r rank of an adapter.
"""

from __future__ import annotations

from dataclasses import dataclass

from ds_stage2ab.codec.bins import NUM_BINS
from ds_stage2ab.config.sections import NO_OFFLOAD, Config
from ds_stage2ab.preflight.model_shape import (
    PARTS,
    ModelShape,
    TextShape,
    adapter_parameters,
    linears,
    parameters_of,
)

VALUE_BYTES = {"fp32": 4, "bf16": 2}
FP32_BYTES = 4
REDUCE_BUCKET = 500_000_000  # values; DeepSpeed's default of reduce_bucket_size, allocated whole where there is one
LOGIT_COPIES = 3
"""Rows of the vocabulary's width per supervised token when the backward pass begins: logits, the gradients of those of
text and of slots, and these joined. fp32 copies are of a few rows at a time (`losses/row_blocks.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What one learner needs; bytes, but for the first two."""

    parameters: int
    # P, adapters included
    trained: int
    # P_t
    weights: int
    gradients: int
    optimizer: int
    reduce_bucket: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.reduce_bucket + self.activations


def estimate(shape: ModelShape, config: Config, *, learners: int, zero_stage: int) -> Memory:
    """What one learner keeps at the end of the forward pass over one full pack.

    Weights e P, the sum of gradients in fp32 4 P_t, AdamW's two moments 8 P_t, and with ZeRO an fp32 copy of the
    trained weights 4 P_t; of these, W ranks share out the optimizer's from stage 1, the gradients from stage 2, the
    weights from stage 3 (Rajbhandari et al. 2020, section 5 and figure 1). DeepSpeed makes its fp32 copy in fp32 too.
    Beside trained rows peft keeps them as they were, in a buffer, which no stage shares out.

    An offloaded optimizer takes host memory, which is not counted here.

    Args:
        shape: sizes of the model.
        config: a loaded config.
        learners: W.
        zero_stage: the stage that is run.
    """
    size = VALUE_BYTES[config.model.precision]
    parts = [part for part in PARTS if part not in config.model.freeze]
    base = parameters_of(shape)
    has_adapters = config.tuner.type != "full"
    rows = NUM_BINS * shape.text.width if config.tuner.trainable_token_rows else 0
    adapters = adapter_parameters(shape, config.tuner, parts) + rows if has_adapters else 0
    trained = adapters if has_adapters else sum(base[part] for part in parts)
    parameters = sum(base.values()) + adapters
    moments = 2 * FP32_BYTES if config.training.optimizer == "adamw" else 0
    master = FP32_BYTES if zero_stage else 0
    offloaded = config.deepspeed.offload_optimizer != NO_OFFLOAD
    return Memory(
        parameters=parameters,
        trained=trained,
        weights=_share(size * parameters, learners, zero_stage >= 3) + size * rows,
        gradients=_gradient_bytes(size, trained, learners, zero_stage),
        optimizer=0 if offloaded else _share((moments + master) * trained, learners, zero_stage >= 1),
        reduce_bucket=_reduce_bytes(size, trained, zero_stage, offloaded),
        activations=activation_bytes(shape, config, parts),
    )


def _gradient_bytes(size: int, trained: int, learners: int, zero_stage: int) -> int:
    """The sum over a step's packs, in fp32. Stage 1 in bf16 keeps a pack's own gradients beside it."""
    own = size * trained if zero_stage == 1 and size < FP32_BYTES else 0
    return own + _share(FP32_BYTES * trained, learners, zero_stage >= 2)


def _reduce_bytes(size: int, trained: int, zero_stage: int, offloaded: bool) -> int:
    """What gradients are put into to be summed over the ranks, in fp32.

    In bf16 stage 1 sums them where they lie, unless its optimizer is offloaded, and stage 2 has a bucket of bf16,
    whose content it copies.
    """
    if zero_stage == 0 or (zero_stage == 1 and size < FP32_BYTES and not offloaded):
        return 0
    if zero_stage == 2 and size < FP32_BYTES:
        return REDUCE_BUCKET * size + FP32_BYTES * min(REDUCE_BUCKET, trained)
    return REDUCE_BUCKET * FP32_BYTES


def _share(whole: int, learners: int, is_shared: bool) -> int:
    return -(-whole // learners) if is_shared else whole


def activation_bytes(shape: ModelShape, config: Config, parts: list[str]) -> int:
    """What autograd keeps of one pack of T = `training.global_max_length` tokens, counted operation by operation.

    The method of Korthikanti et al. 2022 (section 4.1), for these layers. With gradient checkpointing each layer keeps
    its input alone, and one layer at a time is computed again (their section 5, full recomputation). Each token is
    taken as the dearer of two kinds: of an image (m x m patches, where the vision tower or a merger trains), or of an
    answer (a row of logits). So this is the most that a pack can take, not what a usual one does; weights that stay
    frozen beside adapters save about a tenth, which is left out.

    Args:
        shape: sizes of the model.
        config: a loaded config.
        parts: of the model, those outside `model.freeze`.
    """
    size, tokens, text = VALUE_BYTES[config.model.precision], config.training.global_max_length, shape.text
    copy = FP32_BYTES // size
    checkpointing = config.model.gradient_checkpointing
    has_magnitudes = config.tuner.type == "dora"
    layer = tokens * _layer_values(text, copy) + tokens**2 * _pair_values(text, copy, config.model.attn_implementation)
    if has_magnitudes and "language" in parts:
        layer += tokens * _scaled_outputs(shape, "language") // text.layers
    language = _kept(layer, tokens * text.width, text.layers, checkpointing)
    language += tokens * (copy + 2) * text.width  # the last norm
    if shape.tied and config.tuner.trainable_token_rows:
        language += text.vocabulary * text.width  # the head's own copy of the table, with the trained rows in it
    image = _image_token_values(shape, parts, checkpointing, has_magnitudes)
    answer = LOGIT_COPIES * text.vocabulary
    return size * (_kept_passes(config) * language + tokens * max(image, answer))


def _layer_values(text: TextShape, copy: int) -> int:
    """Values that one decoder layer keeps per token: (2 c + 4) h + (c + 5) q + (c + 1) k + 4 i.

    Each RMSNorm keeps its input in fp32, the normed values and what it hands on. Queries and keys are normed too; the
    attention kernel keeps queries, keys and values, the latter two repeated for every query head, and its result. The
    gated MLP keeps gate, its SiLU, the other factor and the product.
    """
    norms = 2 * (copy + 2) * text.width
    attention = (copy + 5) * text.query_width + (copy + 1) * text.key_width
    return norms + attention + 4 * text.inner_width


def _pair_values(text: TextShape, copy: int, attention: str) -> int:
    """Values that one decoder layer keeps per pair of tokens.

    sdpa: none; it attends segment by segment. eager: the softmax of every head in fp32 and, in bf16, its copy (the
    5 a s / h of Korthikanti et al. 2022, without dropout).
    """
    return 0 if attention == "sdpa" else text.heads * (1 if copy == 1 else copy + 1)


def _image_token_values(shape: ModelShape, parts: list[str], checkpointing: bool, magnitudes: bool) -> int:
    """Values kept per token of an image, by the parts of the vision tower that train.

    A patch in a block: two norms with input and result (4 w), queries and keys turned (2 w), the joint projection that
    the values are a part of (3 w), the result of attention by image and joined (2 w), and the MLP before and after
    its GELU: 11 w + 2 u. A merged token: the norm's input and result and the MLP before and after its GELU, m^2 w
    each, and the result. The scores of eager attention, one image at a time, are left out.
    """
    vision = shape.vision
    patches, values = vision.merge**2, 0
    if "vision" in parts:
        block = patches * (11 * vision.width + 2 * vision.inner_width)
        if magnitudes:
            block += patches * _scaled_outputs(shape, "vision") // vision.depth
        values += _kept(block, patches * vision.width, vision.depth, checkpointing)
        values += patches * vision.patch_values
    if "vision" in parts or "aligner" in parts:
        values += (1 + vision.num_deepstack) * (4 * patches * vision.width + vision.output_width)
    if magnitudes and "aligner" in parts:
        values += _scaled_outputs(shape, "aligner")
    return values


def _scaled_outputs(shape: ModelShape, part: str) -> int:
    """DoRA scales the layer's own result and the adapter's, and keeps both: two values per output."""
    return 2 * sum(x.count * x.outputs for x in linears(shape)[part])


def _kept(inside: int, at_entry: int, layers: int, checkpointing: bool) -> int:
    return layers * at_entry + inside if checkpointing else layers * inside


def _kept_passes(config: Config) -> int:
    """Passes of the language model whose activations are alive together; Channel B makes one."""
    section = config.stage2_ab
    if section.schedule.b_ratio == 1:
        return 1
    return section.n_softctx_iter if section.softctx_grad_mode == "unroll" else min(2, section.n_softctx_iter)

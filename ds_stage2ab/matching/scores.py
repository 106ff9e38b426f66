"""The confidence of a box of a scored form, from the token behind it and that token's probability."""

from ds_stage2ab.codec.bins import fraction_of


def confidence_of(score: int, probability: float | None) -> float:
    """The model's estimate, in [0, 1], of the IoU of a box with a true one (0: there is none).

    The model is taught to write 999 with this probability and 0 else (`losses/score.py`), so that of a written 0 it is
    1 - p.

    Args:
        score: the bin that was written.
        probability: of that token; None: not known, and the written bin alone is what there is.
    """
    written = fraction_of(score)
    return written if probability is None else written * probability + (1 - written) * (1 - probability)

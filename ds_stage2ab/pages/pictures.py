"""Images with boxes inside a page: the image as a data address, the boxes as elements above it, so that they stay sharp
and can be pointed at."""

from __future__ import annotations

import base64
import io

from PIL import Image

from ds_stage2ab.carriers import Box
from ds_stage2ab.codec.bins import fraction_of
from ds_stage2ab.pages.frame import text

QUALITY = 80
LATE = 60  # percent: from there on the label of a box ends where the box does, so that it stays inside the image


def jpeg_address(image: Image.Image, side: int) -> tuple[str, tuple[int, int]]:
    """`data:image/jpeg;base64,...` and its size.

    Args:
        image: RGB; left as it is.
        side: pixels that its longer side has at most.
    """
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, format="JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}", small.size


def box_element(box: Box, label: str, kind: str = "", title: str = "") -> str:
    """One box in percent of its image.

    Args:
        label: what stands at its corner; not ours.
        kind: further classes of the element.
        title: what is said where a mouse points at it; the label, if empty.
    """
    x1, y1, x2, y2 = (100 * fraction_of(k) for k in box)
    place = f"left:{x1:.1f}%;top:{y1:.1f}%;width:{x2 - x1:.1f}%;height:{y2 - y1:.1f}%"
    words = " ".join(word for word in ("box", kind, "end" if x1 > LATE else "") if word)
    classes = f"'{words}'" if " " in words else words
    return f"<div class={classes} style='{place}' title='{text(title or label)}'><span>{text(label)}</span></div>"

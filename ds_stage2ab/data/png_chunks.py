"""Whether a PNG says something of its orientation behind its pixels, by its chunk headers alone.

Pillow reads the chunks in front of the pixels when it opens a file, and finds those behind them by decoding the pixels;
a file that has none there need not be decoded (PNG specification, third edition, section 5.3: length, type, data, CRC).
"""

import struct
from typing import BinaryIO

SIGNATURE_BYTES, HEADER_BYTES, CRC_BYTES = 8, 8, 4
PIXELS, END = b"IDAT", b"IEND"
WITH_EXIF = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
"""EXIF, and the texts in which older programs write it."""


def may_have_late_exif(file: BinaryIO) -> bool:
    """Whether such a chunk stands behind the pixels; the place in the file stays."""
    place = file.tell()
    try:
        file.seek(SIGNATURE_BYTES)
        behind = False
        while len(header := file.read(HEADER_BYTES)) == HEADER_BYTES:
            length, kind = struct.unpack(">I4s", header)
            behind |= kind == PIXELS
            if behind and kind in WITH_EXIF:
                return True
            if kind == END:
                break
            file.seek(length + CRC_BYTES, 1)
        return False
    finally:
        file.seek(place)

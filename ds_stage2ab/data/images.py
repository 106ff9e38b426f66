"""The image of a record: found below the image root, checked against the record, decoded.

Nothing is opened before it is known to be a regular file: a FIFO would block for ever. A record's text never leaves the
root; symbolic links that stand in it are followed, since image folders are often linked, file by file or whole.
"""

import io
import os
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from PIL import Image, ImageOps, UnidentifiedImageError

from ds_stage2ab.carriers import Record
from ds_stage2ab.data.png_chunks import may_have_late_exif
from ds_stage2ab.errors import DataError, printable
from ds_stage2ab.model_folder.images import THIN_FIX, too_thin

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""Decoders that Pillow may use; one of the others starts an external program (EPS)."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Of what is taken from a folder; a file that is named itself is taken whatever it is called."""
MAX_PIXELS = 64_000_000  # 192 MB as RGB, checked in the header before anything is decoded
MAX_BYTES = 256 * 2**20  # no image of MAX_PIXELS in these formats needs more
EXIF_ORIENTATION = 0x0112
ORIENTATIONS = range(1, 9)  # those of EXIF
WITH_ORIENTATION = {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"}
"""Keys of what Pillow has read in front of a PNG's pixels."""
WITH_ALPHA = ("RGBA", "LA", "PA")  # modes
QUARTER_TURNS = range(5, 9)  # EXIF orientations that swap width and height

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|(data|file):", re.IGNORECASE)
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    struct.error,
    zlib.error,
)
"""What Pillow's decoders raise on bytes that are not what they claim."""


class Unusable(DataError):
    """The path of an image is valid, but the file is missing or empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What an image file says of itself."""

    width: int
    height: int
    # pixels, as they are stored
    orientation: int
    # EXIF, 1..8; 1 where the file says nothing, or nothing sensible

    @property
    def shown(self) -> tuple[int, int]:
        """(width, height) with the orientation applied."""
        turned = self.orientation in QUARTER_TURNS
        return (self.height, self.width) if turned else (self.width, self.height)


def check_path(text: str) -> None:
    """Look at the text alone.

    Raises:
        DataError: it is no relative path that stays where it starts. It has no `where`.
    """
    if _URL.match(text):
        raise DataError(f"image {text!r} is a URL", fix="download it and write its path inside the image root")
    if text.startswith("/") or ".." in PurePosixPath(text).parts:
        raise DataError(
            f"image {text!r} is no path inside the image root",
            fix="write a path relative to data.image_root (or to the JSONL's folder), without '..'",
        )


def find_image(root: Path, text: str) -> Path:
    """The regular file that `text` names below `root`, links followed.

    Args:
        root: the image root, resolved (no symbolic link in it).
        text: the path as a record has it, "/" between its parts.

    Returns: absolute, resolved path.

    Raises:
        Unusable: there is no such file, or it is empty. Neither error has a `where`.
        DataError: not a relative path without "..", or there is no readable regular file.
    """
    check_path(text)
    try:
        found = Path(os.path.realpath(root / text, strict=True))
        status = found.stat()
    except FileNotFoundError:
        raise Unusable(f"image {text!r} does not exist in {root}", fix=_spelling(root, text)) from None
    except OSError as error:
        raise DataError(f"image {text!r} cannot be reached: {error.strerror}", fix=f"look at {root / text}") from None
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"image {text!r} is {_kind(status.st_mode)}, not a file", fix="write the path of an image file")
    if status.st_size == 0:
        raise Unusable(f"image {text!r} is an empty file", fix="fetch it again")
    return found


def check_image(record: Record) -> None:
    """Read the header of a record's image and compare it with the record; nothing is decoded.

    Raises:
        DataError: missing, not an image, too large or thin, 16 bits deep, or not `width` x `height` after EXIF
            orientation.
    """
    path = record.image
    with _explained(path, record.where), path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
        _check_header(record, image)


def read_header(path: Path, where: str) -> Header:
    """The size and orientation of an image; nothing is decoded.

    Args:
        where: of an error, e.g. the line that names the image.

    Raises:
        DataError: missing, not an image, too large or thin, or 16 bits deep.
    """
    with _explained(path, where), path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
        return _header(path, where, image)


def load_image(record: Record) -> tuple[bytes, Image.Image]:
    """The image file's bytes as they are on disk, and the decoded picture.

    Returns: (bytes, RGB image of the record's `width` x `height`: EXIF orientation applied, transparent parts white).

    Raises:
        DataError: as `check_image`, or the pixels are corrupt or truncated.
    """
    with _explained(record.image, record.where):
        content = record.image.read_bytes()
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_header(record, image)
            return content, as_rgb(ImageOps.exif_transpose(image))


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB with transparent parts white, as viewers show them; the hidden pixels are often black.

    vLLM finds the same images transparent, and makes them white too: server and learner see the same pixels.
    """
    if image.mode == "RGB" or not (image.mode in WITH_ALPHA or "transparency" in image.info):
        return image.convert("RGB")
    layered = image.convert("RGBA")
    shown = Image.new("RGB", image.size, "white")
    shown.paste(layered, mask=layered.getchannel("A"))
    return shown


def _header(path: Path, where: str, image: Image.Image) -> Header:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _fault(path, where, f"has {width * height} pixels, the limit is {MAX_PIXELS}", "make it smaller")
    if image.mode.startswith(("I", "F")):
        raise _fault(path, where, f"has pixels of mode {image.mode}", "convert it to 8 bits per channel")
    said = _orientation(image)
    header = Header(width=width, height=height, orientation=said if said in ORIENTATIONS else 1)
    if why := too_thin(header.shown):
        raise _fault(path, where, why, THIN_FIX)
    return header


def _orientation(image: Image.Image) -> object:
    """What EXIF says; of a PNG nothing is decoded for it unless something stands behind the pixels."""
    if image.format == "PNG" and not image.info.keys() & WITH_ORIENTATION and not may_have_late_exif(image.fp):
        return None
    return image.getexif().get(EXIF_ORIENTATION)


def _check_header(record: Record, image: Image.Image) -> None:
    width, height = _header(record.image, record.where, image).shown
    if (width, height) != (record.width, record.height):
        raise _fault(
            record.image,
            record.where,
            f"is {width} x {height} pixels (EXIF orientation applied), the record says"
            f" {record.width} x {record.height}",
            "correct width and height, and check that the boxes belong to this image",
        )


def unusable_images(records: Iterable[Record]) -> Iterator[str]:
    """One message for each image whose header training would refuse."""
    for record in records:
        try:
            check_image(record)
        except DataError as error:
            yield f"{printable(error.where)}: {error.why}"


@contextmanager
def _explained(path: Path, where: str) -> Iterator[None]:
    """Check the file before it is opened, and convert a decoder's error to a DataError."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise _fault(path, where, f"is {_kind(status.st_mode)}, not a file", "put the image file back")
        if status.st_size > MAX_BYTES:
            raise _fault(path, where, f"is {status.st_size} bytes long, the limit is {MAX_BYTES}", "make it smaller")
        with warnings.catch_warnings():
            # Our own limit is below the size at which Pillow raises; its warning would only repeat it.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    except Image.DecompressionBombError as error:
        raise _fault(path, where, f"is too large ({error})", "make it smaller") from None
    except UnidentifiedImageError:
        raise _fault(path, where, f"is no image of a supported format ({', '.join(FORMATS)})", "convert it") from None
    except FileNotFoundError:
        raise _fault(path, where, "is gone", "put it back") from None
    except _DECODER_ERRORS as error:
        raise _fault(path, where, f"cannot be read: {error}", "fetch or export it again") from None


def _fault(path: Path, where: str, why: str, fix: str) -> DataError:
    return DataError(f"image {printable(str(path))} {why}", where=where, fix=fix)


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))
    return next((name for test, name in kinds if test(mode)), "a device")


def _spelling(root: Path, text: str) -> str:
    """A remedy for a missing file: what is there instead of the first part of its path that is missing."""
    here = root
    for part in PurePosixPath(text.replace("\\", "/")).parts:
        if (here / part).is_symlink() and not (here / part).exists():
            return f"{here / part} is a link to {os.readlink(here / part)!r}, and nothing is there: put it back"
        if not (here / part).exists():
            return _alike(here, part) or "correct the path or set data.image_root"
        here /= part
    return f"write '/' instead of '\\': {text.replace(chr(92), '/')}"


def _alike(folder: Path, wanted: str) -> str:
    """A remedy if an entry of the folder has nearly the name; names that look the same are shown in escapes."""
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    for name in sorted(names):
        if normalize("NFC", name) == normalize("NFC", wanted):
            shown = f"{name!a}, the path has {wanted!a}"
            return f"there is one of the same letters in another Unicode form, {shown}: rename it, or change the path"
        if name.strip() == wanted.strip():
            return f"what is there is called {name!r}: mind the blanks around it"
        if name.casefold() == wanted.casefold():
            return f"the file there is called {name!r}"
    return ""

import io
import os
import socket
from contextlib import suppress
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from ds_stage2ab.carriers import Record
from ds_stage2ab.data.images import MAX_BYTES, check_image, find_image, load_image
from ds_stage2ab.errors import DataError


def record(image: Path, width: int, height: int) -> Record:
    return Record(id="r", image=image, width=width, height=height, objects=(), where="set.jsonl:3")


def picture(width: int, height: int) -> Image.Image:
    ramp = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    return Image.fromarray(ramp.astype(np.uint8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = (tmp_path / "root").resolve()
    (folder / "sub").mkdir(parents=True)
    picture(6, 4).save(folder / "a.png")
    picture(6, 4).save(folder / "sub" / "B.png")
    return folder


def refused_path(root: Path, text: str) -> DataError:
    with pytest.raises(DataError) as caught:
        find_image(root, text)
    assert caught.value.fix
    return caught.value


def test_paths_inside_the_root(root):
    assert find_image(root, "sub/B.png") == root / "sub" / "B.png"
    (root / "link.png").symlink_to(root / "sub" / "B.png")
    assert find_image(root, "link.png") == root / "sub" / "B.png"


@pytest.mark.parametrize("text", ["/etc/hostname", "../root/a.png", "sub/../a.png", ".."])
def test_paths_that_leave_the_root(root, text):
    assert "no path inside the image root" in refused_path(root, text).why


@pytest.mark.parametrize(
    "text", ["http://x/a.png", "file:a.png", "FILE:///a.png", "data:image/png;base64,", "s3://b/a"]
)
def test_urls(root, text):
    assert "is a URL" in refused_path(root, text).why


def test_links_inside_the_root_are_followed(root, tmp_path):
    """Files that are linked one by one, as a hub's cache has them, a linked folder, and a link to a link."""
    blob = tmp_path / "blobs" / "0f3a"
    blob.parent.mkdir()
    picture(6, 4).save(blob, format="PNG")
    (root / "one.png").symlink_to("../blobs/0f3a")
    (root / "linked").symlink_to(tmp_path / "root" / "sub")
    (root / "twice.png").symlink_to("one.png")
    for text, found in (("one.png", blob), ("linked/B.png", root / "sub" / "B.png"), ("twice.png", blob)):
        assert find_image(root, text) == found
        check_image(record(find_image(root, text), 6, 4))


def test_a_link_to_what_is_no_image_file(root, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (root / "pipe.png").symlink_to(tmp_path / "pipe")
    (root / "gone.png").symlink_to("../blobs/none")
    (root / "gone").symlink_to(tmp_path / "none")
    assert "is a FIFO" in refused_path(root, "pipe.png").why
    for text in ("gone.png", "gone/a.png"):
        assert "is a link to " in refused_path(root, text).fix


@pytest.mark.parametrize(("stored", "written"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_name_in_another_unicode_form_is_told(root, stored, written):
    name = "\u00e9t\u00e9"
    (root / normalize(stored, name)).mkdir()
    picture(6, 4).save(root / normalize(stored, name) / "a.png")
    (root / normalize(stored, f"{name}.png")).write_bytes(b"x")
    for text in (f"{name}/a.png", f"{name}.png"):
        fix = refused_path(root, normalize(written, text)).fix
        assert "in another Unicode form" in fix and ascii(normalize(stored, name))[1:-1] in fix


def test_a_blank_behind_a_name_is_told(root):
    picture(6, 4).save(root / "b.png ", format="PNG")
    assert refused_path(root, "b.png").fix == "what is there is called 'b.png ': mind the blanks around it"
    assert "'a.png': mind the blanks" in refused_path(root, "a.png ").fix


@pytest.mark.parametrize("read", [check_image, load_image])
def test_an_image_that_the_processor_refuses(root, read):
    """200:1 is its limit; the size stands in the record, so it is known at the start."""
    for width, height, taken in ((2, 600, False), (5000, 1, False), (400, 2, True)):
        Image.new("RGB", (width, height)).save(root / "thin.png")
        if taken:
            read(record(root / "thin.png", width, height))
            continue
        with pytest.raises(DataError, match=f"is {width} x {height} pixels: .* at most 200:1") as caught:
            read(record(root / "thin.png", width, height))
        assert caught.value.where == "set.jsonl:3" and caught.value.fix


def test_a_missing_image_and_its_likely_spelling(root):
    assert "does not exist" in refused_path(root, "none.png").why
    assert refused_path(root, "sub/b.png").fix == "the file there is called 'B.png'"
    assert refused_path(root, "sub\\B.png").fix == "write '/' instead of '\\': sub/B.png"


def test_what_is_no_regular_file(root):
    os.mkfifo(root / "pipe.png")
    (root / "empty.png").write_bytes(b"")
    (root / "loop.png").symlink_to(root / "loop.png")
    assert "is a FIFO" in refused_path(root, "pipe.png").why
    assert "is a folder" in refused_path(root, "sub").why
    assert "is an empty file" in refused_path(root, "empty.png").why
    assert "cannot be reached" in refused_path(root, "loop.png").why
    assert "cannot be reached" in refused_path(root, "a.png/b.png").why
    assert "cannot be reached" in refused_path(root, "x" * 300).why


def test_a_socket(root, monkeypatch):
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.png")
        assert "is a socket" in refused_path(root, "s.png").why


def test_load_gives_the_bytes_and_the_picture(root):
    content, image = load_image(record(root / "a.png", 6, 4))
    assert content == (root / "a.png").read_bytes()
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(picture(6, 4)))


def test_orientation_is_applied_before_sizes_are_compared(root):
    path = root / "turned.jpg"
    upright = Image.new("RGB", (16, 8), "black")
    upright.paste("white", (0, 0, 8, 8))  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned; shown after a quarter turn clockwise
    upright.save(path, exif=exif, quality=100)
    check_image(record(path, 8, 16))
    _, image = load_image(record(path, 8, 16))
    assert image.size == (8, 16)
    assert image.getpixel((4, 2))[0] > 200  # clockwise: the left half is now on top
    assert image.getpixel((4, 13))[0] < 50
    with pytest.raises(DataError, match=r"is 8 x 16 pixels \(EXIF orientation applied\), the record says 16 x 8"):
        check_image(record(path, 16, 8))


def late(content: bytes, kind: bytes) -> bytes:
    """A PNG with its chunk of a kind moved behind the pixels."""
    place, chunks = 8, []
    while place < len(content):
        length = int.from_bytes(content[place : place + 4], "big") + 12
        chunks.append(content[place : place + length])
        place += length
    moved = [chunk for chunk in chunks if chunk[4:8] == kind]
    return b"".join([content[:8], *(chunk for chunk in chunks[:-1] if chunk not in moved), *moved, chunks[-1]])


@pytest.mark.parametrize("place", ["early", "late", "xmp"])
def test_a_png_says_its_orientation_in_front_of_its_pixels_or_behind_them(root, place):
    path, exif, info = root / "turned.png", Image.Exif(), PngInfo()
    exif[0x0112] = 6
    if place == "xmp":
        info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
        picture(16, 8).save(path, pnginfo=info)
    else:
        picture(16, 8).save(path, exif=exif)
    if place == "late":
        path.write_bytes(late(path.read_bytes(), b"eXIf"))
    check_image(record(path, 8, 16))
    assert load_image(record(path, 8, 16))[1].size == (8, 16)


def test_a_png_without_exif_is_not_decoded_for_it(root, monkeypatch):
    monkeypatch.setattr(PngImageFile, "load", lambda image: pytest.fail("decoded"))
    check_image(record(root / "a.png", 6, 4))


@pytest.mark.parametrize("read", [check_image, load_image])
def test_another_size_than_the_record_says(root, read):
    with pytest.raises(DataError, match=r"is 6 x 4 pixels .* the record says 4 x 6") as caught:
        read(record(root / "a.png", 4, 6))
    assert caught.value.where == "set.jsonl:3"


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "LA", "1"])
def test_other_modes_become_rgb(root, mode):
    path = root / "mode.tiff"
    picture(6, 4).convert(mode).save(path)
    assert load_image(record(path, 6, 4))[1].mode == "RGB"


CLEAR, HALF, FULL = 0, 128, 255
BLENDED = 127  # black behind half a white, rounded by Pillow
TRANSPARENT = {
    "RGBA": ([(0, 0, 0, CLEAR), (0, 0, 0, HALF), (0, 0, 255, FULL)], [(255,) * 3, (BLENDED,) * 3, (0, 0, 255)]),
    "LA": ([(0, CLEAR), (0, HALF), (0, FULL)], [(255,) * 3, (BLENDED,) * 3, (0,) * 3]),
    "P": ([0, 1, 2], [(255,) * 3, (BLENDED,) * 3, (0, 0, 255)]),
}


@pytest.mark.parametrize("mode", TRANSPARENT)
def test_transparent_parts_are_white(root, mode):
    """Under them lies black."""
    stored, shown = TRANSPARENT[mode]
    image = Image.new(mode, (3, 1))
    image.putdata(stored)
    if mode == "P":
        image.putpalette([0, 0, 0, 0, 0, 0, 0, 0, 255])
        image.info["transparency"] = bytes([CLEAR, HALF, FULL])
    path = root / "cut-out.png"
    image.save(path)
    assert [load_image(record(path, 3, 1))[1].getpixel((x, 0)) for x in range(3)] == shown


def test_sixteen_bits_are_refused(root):
    path = root / "deep.png"
    Image.fromarray(np.full((4, 6), 40_000, np.uint16)).save(path)
    with pytest.raises(DataError, match="pixels of mode I;16"):
        check_image(record(path, 6, 4))


def test_no_image_at_all(root):
    for name, content in (("t.png", b"hello"), ("v.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>")):
        (root / name).write_bytes(content)
        with pytest.raises(DataError, match="is no image of a supported format"):
            check_image(record(root / name, 6, 4))


def test_postscript_starts_no_other_program(root):
    (root / "p.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\n")
    with pytest.raises(DataError, match="is no image of a supported format"):
        load_image(record(root / "p.eps", 6, 4))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_and_damaged_images(root, kind):
    buffer = io.BytesIO()
    picture(64, 48).save(buffer, kind)
    whole = buffer.getvalue()
    path = root / "cut"
    for keep in range(1, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:keep])
        _reads_or_is_refused(path)
    for at in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        _reads_or_is_refused(path)


def _reads_or_is_refused(path: Path) -> None:
    with suppress(DataError):
        load_image(record(path, 64, 48))


def test_a_truncated_png_is_refused(root):
    whole = (root / "a.png").read_bytes()
    (root / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        load_image(record(root / "a.png", 6, 4))


def test_sizes_are_checked_before_anything_is_decoded(root):
    # 1 bit per pixel: 200 megapixels are a file of a few kilobytes.
    path = root / "bomb.png"
    Image.new("1", (20_000, 10_000)).save(path)
    with pytest.raises(DataError, match=r"too large|limit is 64000000"):
        check_image(record(path, 20_000, 10_000))
    Image.new("1", (10_000, 7_000)).save(path)
    with pytest.raises(DataError, match="has 70000000 pixels"):
        load_image(record(path, 10_000, 7_000))


def test_a_huge_file_is_not_read(root):
    path = root / "huge.png"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(DataError, match="bytes long, the limit is"):
        load_image(record(path, 6, 4))


@pytest.mark.parametrize("read", [check_image, load_image])
def test_the_file_changed_since_the_records_were_read(root, read):
    path = root / "a.png"
    path.unlink()
    with pytest.raises(DataError, match="is gone"):
        read(record(path, 6, 4))
    os.mkfifo(path)
    with pytest.raises(DataError, match="is a FIFO"):
        read(record(path, 6, 4))

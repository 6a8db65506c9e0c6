"""Images from strangers: whatever a file holds, it gives pixels or one line."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hostile import everything, outcome, spoilt
from PIL import Image

from gnothi.contracts import DataError, Source
from gnothi.data import inspect, pixels
from gnothi.data import open as open_data
from gnothi.data.decode import EXTENSIONS, decode, header
from gnothi.encoders import load
from gnothi.randomness import generator
from gnothi.recipes.views import named
from gnothi.views.batches import Batches

H, W = 10, 12
LONG = 65_535
RGB = torch.randint(256, (H, W, 3), generator=generator(0, "hostile"), dtype=torch.uint8).numpy()


def saved(image: Image.Image, kind: str, **more: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **more)
    return out.getvalue()


def tiffed(array: np.ndarray, **more: object) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, array, **more)
    return out.getvalue()


@cache
def whole() -> dict[str, bytes]:
    """Files of every format and many kinds, small enough to be cut at every byte."""
    rgb, alpha = Image.fromarray(RGB), Image.fromarray(np.concatenate([RGB, RGB[..., :1]], 2))
    frames = [rgb, rgb.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    exif = Image.Exif()
    exif[274] = 6
    deep = RGB.astype(np.uint16) * 257
    import imagecodecs

    return {
        "rgb.png": saved(rgb, "png"),
        "palette.png": saved(rgb.convert("P"), "png", transparency=0),
        "bits.png": saved(rgb.convert("1"), "png"),
        "alpha.png": saved(alpha, "png"),
        "exif.png": saved(rgb, "png", exif=exif),
        "grey16.png": saved(Image.fromarray(deep[..., 0]), "png"),
        "deep.png": imagecodecs.png_encode(deep),
        "animated.png": saved(rgb, "png", save_all=True, append_images=frames[1:]),
        "rgb.jpg": saved(rgb, "jpeg"),
        "exif.jpg": saved(rgb, "jpeg", exif=exif, progressive=True),
        "cmyk.jpg": saved(rgb.convert("CMYK"), "jpeg"),
        "animated.gif": saved(rgb, "gif", save_all=True, append_images=frames[1:]),
        "animated.webp": saved(rgb, "webp", save_all=True, append_images=frames[1:]),
        "lossless.webp": saved(alpha, "webp", lossless=True, exif=exif),
        "rgb.bmp": saved(rgb, "bmp"),
        "bits.bmp": saved(rgb.convert("1"), "bmp"),
        "rgb.tif": tiffed(RGB, photometric="rgb", compression="deflate"),
        "lzw.tif": tiffed(deep, photometric="rgb", compression="lzw", predictor=True),
        "tiled.tif": tiffed(np.tile(RGB, (3, 3, 1)), photometric="rgb", tile=(16, 16), compression="jpeg"),
        "seven.tif": tiffed(np.stack([RGB[..., 0]] * 7, 2), photometric="minisblack", planarconfig="contig"),
        "float.tif": tiffed(RGB[..., 0].astype(np.float32), compression="zstd"),
        "bits.tif": saved(rgb.convert("1"), "tiff", compression="group4"),
        "palette.tif": saved(rgb.convert("P"), "tiff"),
        "big.tif": tiffed(RGB, photometric="rgb", bigtiff=True, compression="webp"),
    }


def read(path: Path) -> tuple[str | None, str | None]:
    """What comes of the header and of the pixels of a file."""

    def pixels_too() -> None:
        image, form = decode(str(path))
        assert image.ndim == 3 and image.size and image.dtype in (np.uint8, np.uint16, np.float32)
        assert image.shape[2] == form.channels and np.isfinite(image).all()

    return outcome(lambda: header(str(path))), outcome(pixels_too)


def test_what_is_spoilt_below_is_readable_before(tmp_path: Path) -> None:
    for name, raw in whole().items():
        (tmp_path / name).write_bytes(raw)
        assert read(tmp_path / name) == (None, None), name
    assert {Path(name).suffix for name in whole()} >= set(EXTENSIONS) - {".jpeg", ".tiff"}


@pytest.mark.parametrize("every", [61, pytest.param(1, marks=pytest.mark.slow)])
def test_a_file_cut_at_any_byte_gives_pixels_or_one_line(every: int, tmp_path: Path) -> None:
    for name, raw in whole().items():
        path = tmp_path / name
        for end in range(0, len(raw), every):
            path.write_bytes(raw[:end])
            said = read(path)
            assert end > 20 or said[1] is not None, name
    assert set(everything(tmp_path)) == set(whole())


@pytest.mark.parametrize("cases", [300, pytest.param(8000, marks=pytest.mark.slow)])
def test_a_file_spoilt_at_random_gives_pixels_or_one_line(cases: int, tmp_path: Path) -> None:
    names, raws = list(whole()), tuple(whole().values())
    refused = 0
    for case in range(cases):
        path = tmp_path / names[case % len(names)]
        path.write_bytes(spoilt(raws[case % len(names)], case, "images", raws))
        refused += read(path)[1] is not None
    assert cases / 4 < refused < cases  # some are readable still, and far from all
    assert set(everything(tmp_path)) <= set(whole())


def png(width: int, height: int, *, depth: int = 8, colour: int = 0, body: bytes = b"", before: bytes = b"") -> bytes:
    """A PNG whose header says anything."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    shape = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", shape) + before + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def retagged(raw: bytes, **values: int) -> bytes:
    """A TIFF whose tags say something else."""
    out = io.BytesIO(raw)
    with tifffile.TiffFile(out, mode="r+b") as tif:
        for name, value in values.items():
            tif.pages[0].tags[name].overwrite(value)
        return out.getvalue()


def text_bomb() -> bytes:
    """A PNG with a note of 60 MB that takes 60 kB."""
    note = b"note\0\0" + zlib.compress(b"a" * 60_000_000)
    body = struct.pack(">I", len(note)) + b"zTXt" + note + struct.pack(">I", zlib.crc32(b"zTXt" + note))
    return png(4, 4, body=b"\0aaaa" * 4, before=body)


ABSURD: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "no width.png": (lambda: png(0, 5), "cannot be read|is not an image"),
    "no height.bmp": (lambda: whole()["rgb.bmp"].replace(struct.pack("<ii", W, H), struct.pack("<ii", W, 0)), ""),
    "no width.tif": (lambda: retagged(whole()["rgb.tif"], ImageWidth=0), ""),
    "no size.gif": (lambda: whole()["animated.gif"].replace(struct.pack("<HH", W, H), struct.pack("<HH", 0, 0)), ""),
    "bomb.png": (lambda: png(50_000, 50_000, body=b"\0"), "decompression bomb"),
    "bomb of text.png": (text_bomb, ""),
    "bomb.gif": (lambda: whole()["animated.gif"].replace(struct.pack("<HH", W, H), struct.pack("<HH", LONG, LONG), 1), "decompression bomb"),
    "bomb.bmp": (lambda: whole()["rgb.bmp"].replace(struct.pack("<ii", W, H), struct.pack("<ii", 2**31 - 1, 2**31 - 1)), ""),
    "bomb.tif": (lambda: retagged(whole()["rgb.tif"], ImageWidth=50_000, ImageLength=50_000), "decompression bomb"),
    "bomb of channels.tif": (
        lambda: retagged(whole()["seven.tif"], ImageWidth=9000, ImageLength=9000, SamplesPerPixel=60_000),
        "decompression bomb|cannot be read",
    ),
    "row.png": (lambda: png(LONG, 1, body=b"\0" + b"\x55" * LONG), None),
    "column.png": (lambda: png(1, LONG, body=b"\0\x55" * LONG), None),
    "row.jpg": (lambda: saved(Image.new("RGB", (65_500, 1)), "jpeg"), None),
    "not a number.tif": (lambda: tiffed(np.full((4, 5), np.nan, np.float32)), "not finite"),
    "infinite.tif": (lambda: tiffed(np.full((4, 5), np.inf, np.float32)), "not finite"),
    "many pages.tif": (lambda: tiffed(np.zeros((40, 8, 8), np.uint8)), None),
    "exif 9999.jpg": (lambda: _oriented(9999), None),
    "exif of text.jpg": (lambda: _oriented(6).replace(b"\x01\x12\0\x03", b"\x01\x12\0\x02"), None),
    "exif in a circle.jpg": (
        lambda: saved(Image.fromarray(RGB), "jpeg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x87\x69\0\x04\0\0\0\x01\0\0\0\x08\0\0\0\x08"),
        None,
    ),
    "exif without end.jpg": (lambda: saved(Image.fromarray(RGB), "jpeg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 400), None),
    "text.png": (lambda: b"<svg onload=alert(1)>", "is not an image"),
    "svg.png": (lambda: b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "is not an image"),
    "eps.png": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(evil) (w) file\n%%EOF", ""),
    "archive.jpg": (lambda: b"PK\x03\x04" + b"\0" * 60, "is not an image"),
    "nothing.webp": (lambda: b"", "is not an image"),
}
"""Files by hand: how each is made, and what is said of it (any refusal where empty, None for pixels)."""


def _oriented(value: int) -> bytes:
    exif = Image.Exif()
    exif[274] = value
    return saved(Image.fromarray(RGB), "jpeg", exif=exif)


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_files_give_what_they_hold_or_one_line(name: str, tmp_path: Path) -> None:
    import re

    make, expected = ABSURD[name]
    (tmp_path / name).write_bytes(make())
    said = read(tmp_path / name)[1]
    if name == "many pages.tif":
        assert said is None or "images" in said
    elif expected is None:
        assert said is None
    else:
        assert said is not None and re.search(expected, said), said
    assert set(everything(tmp_path)) == {name}


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_the_extension_promises_nothing(extension: str, tmp_path: Path) -> None:
    for name, raw in whole().items():
        path = tmp_path / f"{name}{extension}"
        path.write_bytes(raw)
        assert read(path) == (None, None), path.name


NAMES = [
    "new\nline.png", "back\rspace\b.png", "\x1b[2J\x1b]0;title\x07.png", "<script>alert(1)</script>.png".replace("/", "\u2215"), "' onerror='x.png",
    '"><b>.png',     "a\u2028b.png", "\u202egnp.exe.png", "..\\..\\up.png", "...png", "-rf.png", "$(touch x).png", "%s%n{0}.png", "a" * 240 + ".png",
    "写真 \U0001f600.png",
]  # fmt: skip


def hostile_folder(folder: Path) -> Path:
    """Good images under bad names, and bad files under good ones."""
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(whole()["rgb.png"])
    with open(os.path.join(os.fsencode(folder), b"not \xff\xfe text.png"), "wb") as file:
        file.write(whole()["rgb.png"])
    for name, (make, _) in ABSURD.items():
        if "bomb" not in name and "float" not in name:
            (folder / name).write_bytes(make())
    (folder / "link in a circle.png").symlink_to("link in a circle.png")
    (folder / "link to nothing.jpg").symlink_to("nowhere")
    (folder / "up").symlink_to("..")
    os.mkfifo(folder / "pipe.png")
    return folder


def names(source: Source) -> list[str]:
    return [source.name(row) for row in range(len(source))]


def test_a_folder_of_hostile_files_is_looked_at_cut_and_embedded(tmp_path: Path) -> None:
    source = open_data(str(hostile_folder(tmp_path / "images")))
    before = everything(tmp_path)
    told = names(source)
    assert len(set(told)) == len(told) and all(name.isprintable() or "\u202e" in name for name in told)
    assert "new\\nline.png" in told and "not \\xff\\xfe text.png" in told
    seen = inspect(source).lines()
    assert any("link to nothing.jpg" in line for line in seen) and all("\n" not in line for line in seen)
    views = Batches(source, named("simclr-cifar", 16), batch=8, seed=0, pixels=pixels(source), device="cpu", total=12, broken_fraction=1.0)
    for step in range(12):
        assert all(torch.isfinite(image).all() and image.shape[2:] == (16, 16) for image in views(step).images)
    vectors = load("colour").embed_source(source)
    broken = {name for name, vector in zip(told, vectors, strict=True) if np.isnan(vector).any()}
    assert {"row.png", "column.png", "...png", "-rf.png"}.isdisjoint(broken) and {"no width.png", "svg.png", "pipe.png"} <= broken
    assert everything(tmp_path) == before


def test_a_file_that_is_no_plain_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert "is no plain file" in (outcome(lambda: decode(str(tmp_path / "pipe.png"))) or "")
    assert "is no plain file" in (outcome(lambda: header(str(tmp_path / "pipe.png"))) or "")
    with pytest.raises(DataError, match="is no plain file"):
        decode(str(tmp_path))

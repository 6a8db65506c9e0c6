"""One image file: its header, and its pixels as they are stored. Everything but TIFF is Pillow's, but for PNGs of 16 bits, which Pillow narrows."""

from __future__ import annotations

import builtins
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from gnothi.contracts import DataError
from gnothi.data import tiff
from gnothi.data.arrays import kept_type
from gnothi.data.forms import Form, form_of, no_bomb, oriented

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""Pillow knows many more by their first bytes, one of which is read by another program that runs what the file says (EPS)."""
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PNG = b"\x89PNG\r\n\x1a\n"
DEEP_PNG = {2: ("rgb", "RGB"), 4: ("grey+alpha", "LA"), 6: ("rgb+alpha", "RGBA")}
"""By PNG's number of the colour type; Pillow narrows 16 bits of these to 8."""
# Pillow's mode: what a person calls it, the mode to convert to, and that where there is transparency.
MODES = {
    "1": ("bilevel", "L", "L"),
    "L": ("grey", "L", "LA"),
    "LA": ("grey+alpha", "LA", "LA"),
    "La": ("grey+alpha", "LA", "LA"),
    "P": ("palette", "RGB", "RGBA"),
    "PA": ("palette", "RGBA", "RGBA"),
    "RGB": ("rgb", "RGB", "RGBA"),
    "RGBX": ("rgb", "RGB", "RGB"),
    "RGBA": ("rgb+alpha", "RGBA", "RGBA"),
    "RGBa": ("rgb+alpha", "RGBA", "RGBA"),
    "CMYK": ("cmyk", "RGB", "RGB"),
    "YCbCr": ("ycbcr", "RGB", "RGB"),
    "I": ("grey", "I", "I"),
    "F": ("grey", "F", "F"),
} | {f"I;16{end}": ("grey", f"I;16{end}", f"I;16{end}") for end in ("", "B", "L", "N")}


def header(path: str | bytes) -> tuple[int, int, Form]:
    """Height and width as seen upright, and the form, from the first bytes.

    Args:
        path: the file, or what it holds.

    Raises:
        DataError: it cannot be read; the message lacks the name.
    """
    with _reading(path) as (file, start):
        if start[:4] in TIFF:
            return tiff.header(file)
        with Image.open(file, formats=FORMATS) as image:
            no_bomb(*image.size)
            stored, mode = _kind(image, start)
            empty = np.asarray(Image.new(mode, (1, 1)))
            sample = kept_type(empty.astype(np.uint16) if _deep_png(start) else empty, "sample").reshape(1, 1, -1)
            height, width = image.height, image.width
            turned = _orientation(image) >= 5
    form = form_of(stored, sample, mode in ("LA", "RGBA"))
    return (width, height, form) if turned else (height, width, form)


def decode(path: str | bytes, shrink: int = 1) -> tuple[np.ndarray, Form]:
    """Read the pixels.

    Args:
        path: the file, or what it holds.
        shrink: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, rounded up, or more where a side is shorter than that; others are read whole.

    Returns:
        [H, W, C] upright, and its form.

    Raises:
        DataError: it cannot be read; the message lacks the name.
    """
    with _reading(path) as (file, start):
        if start[:4] in TIFF:
            return tiff.decode(file)
        with Image.open(file, formats=FORMATS) as image:
            no_bomb(*image.size)
            if shrink > 1:
                image.draft(None, (max(image.width // shrink, 1), max(image.height // shrink, 1)))
            return unpacked(image, start)


def unpacked(image: Image.Image, start: bytes = b"") -> tuple[np.ndarray, Form]:
    """[H, W, C] upright and the form of an opened Pillow image; ``start`` is its file's first bytes, where there is a file."""
    orientation = _orientation(image)
    stored, mode = _kind(image, start)
    if _deep_png(start):
        from imagecodecs import png_decode

        image.fp.seek(0)  # type: ignore[attr-defined]
        pixels = png_decode(image.fp.read())  # type: ignore[attr-defined]
    else:
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    pixels = kept_type(pixels, "pixels")
    pixels = oriented(pixels.reshape(*pixels.shape[:2], -1), orientation)
    return pixels, form_of(stored, pixels, mode in ("LA", "RGBA"))


def _kind(image: Image.Image, start: bytes) -> tuple[str, str]:
    """What it is stored as, and the mode of Pillow that holds all of it."""
    if _deep_png(start):
        return DEEP_PNG[start[25]]
    if image.mode not in MODES:
        raise DataError(f"has Pillow's mode {image.mode}, which is not read; save it as RGB or grey")
    stored, plain, transparent = MODES[image.mode]
    return stored, transparent if image.has_transparency_data else plain


def _deep_png(start: bytes) -> bool:
    """Whether it is a PNG with 16 bits a channel and more than one channel."""
    return len(start) > 25 and start[:8] == PNG and start[24] == 16 and start[25] in DEEP_PNG


def _orientation(image: Image.Image) -> int:
    # Asked for EXIF data it has not met, Pillow's PNG reader decodes the whole image; what stands before the pixels is enough.
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return 1
    try:
        found = image.getexif().get(274, 1)
    except Exception:  # noqa: BLE001 - a broken note on orientation leaves the pixels readable, and its reader raises anything
        return 1
    return found if found in range(1, 9) else 1


@contextmanager
def _reading(path: str | bytes) -> Iterator[tuple[BinaryIO, bytes]]:
    """An open file and its first bytes; whatever its decoder raises becomes a DataError in one line."""
    try:
        if isinstance(path, str) and not stat.S_ISREG(os.stat(path).st_mode):
            raise DataError("is no plain file")  # a pipe would be waited for without end
        with _QUIET, io.BytesIO(path) if isinstance(path, bytes) else builtins.open(path, "rb") as file:
            start = file.read(33)
            file.seek(0)
            yield file, start
    except (DataError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise DataError("is not an image, or broken from its first bytes on") from error
    except Exception as error:  # noqa: BLE001 - decoders of broken files raise anything
        said = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"cannot be read: {said}") from error


class _Quiet:
    """Silences warnings while any thread is inside; ``warnings.catch_warnings`` alone would restore the filters under another's feet."""

    def __init__(self) -> None:
        self.lock, self.inside = threading.Lock(), 0
        self.saved: Any = None

    def __enter__(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.saved = warnings.catch_warnings()
                self.saved.__enter__()
                warnings.simplefilter("ignore")
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.saved.__exit__(None, None, None)


_QUIET = _Quiet()

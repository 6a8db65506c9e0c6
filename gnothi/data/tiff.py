"""TIFF files: any number of channels, 1 to 32 bits, floats, palettes, orientation; the first image of a file at full resolution."""

from __future__ import annotations

import logging
from typing import Any, BinaryIO

import numpy as np

from gnothi.contracts import DataError
from gnothi.data.arrays import kept_type
from gnothi.data.forms import Form, form_of, no_bomb, oriented

# The file's own notes on photometric interpretation (TIFF 6.0, section 8 and 16).
WHITE_IS_ZERO, GREY, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
ASSOCIATED, UNASSOCIATED = 1, 2


def header(file: BinaryIO) -> tuple[int, int, Form]:
    """Height and width as seen upright, and the form, without decoding the pixels."""
    series, page = _first(file)
    shape = tuple(series.get_shape(False))
    axes = series.get_axes(False)
    height, width = shape[axes.index("Y")], shape[axes.index("X")]
    channels = int(np.prod([n for n, axis in zip(shape, axes, strict=True) if axis not in "YX"]))
    form = form_once_decoded(page, channels)
    return (width, height, form) if orientation(page) >= 5 else (height, width, form)


def decode(file: BinaryIO) -> tuple[np.ndarray, Form]:
    """[H, W, C] upright, and its form.

    Palettes and CMYK become RGB, zero-is-white is inverted, 1, 2 and 4 bits are stretched to 8, and colours that come multiplied by
    their opacity are divided by it.
    """
    series, page = _first(file)
    axes, raw = series.get_axes(False), series.asarray(squeeze=False)
    order = [i for i, axis in enumerate(axes) if axis not in "YX"]
    raw = raw.transpose(axes.index("Y"), axes.index("X"), *order).reshape(*(raw.shape[axes.index(a)] for a in "YX"), -1)
    return finished(page, raw)


def form_once_decoded(page: Any, channels: int) -> Form:
    """The form of images that ``finished`` makes of a page's numbers; ``channels`` as they are stored."""
    sample = kept_type(np.zeros((1,), page.dtype), "sample")
    stored, result, alpha = _kind(page, channels)
    return form_of(stored, np.empty((1, 1, result), sample.dtype), alpha and sample.dtype != np.float32)


def finished(page: Any, raw: np.ndarray) -> tuple[np.ndarray, Form]:
    """What the numbers of a page, or of a part of it, mean: [H, W, C] as stored to [H, W, C] upright, and its form."""
    stored, channels, alpha = _kind(page, raw.shape[2])
    image = oriented(_meaning(page, raw, channels), orientation(page))
    alpha = alpha and image.dtype != np.float32
    if alpha and ASSOCIATED in page.extrasamples:
        image = _divided(image)
    return image, form_of(stored, image, alpha)


def _first(file: BinaryIO) -> tuple[Any, Any]:
    """The first series and its first page."""
    import tifffile

    silence()
    series = tifffile.TiffFile(file).series[0]
    for axis, n in zip(series.get_axes(False), series.get_shape(False), strict=True):
        if axis not in "YXCSQ" and n > 1:
            raise DataError(f"holds {n} images (axes {series.axes}); one image a file is read, so save each as a file of its own")
    page = series.keyframe
    check_colours(page)
    no_bomb(page.imagewidth, page.imagelength, page.samplesperpixel * max(1, page.dtype.itemsize if page.dtype else 1))
    return series, page


def silence() -> None:
    """Let tifffile not print what it finds odd: it reports to its logger, which prints where nobody listens; what matters raises."""
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)


def check_colours(page: Any) -> None:
    """Refuse a page whose colours mean something that is not read."""
    if page.photometric not in (WHITE_IS_ZERO, GREY, RGB, PALETTE, CMYK) and not (page.photometric == YCBCR and page.compression in (6, 7)):
        raise DataError(f"has the colours {getattr(page.photometric, 'name', page.photometric)}, which are not read; save it as RGB or grey")


def _kind(page: Any, channels: int) -> tuple[str, int, bool]:
    """What it is stored as, how many channels it has once decoded, and whether the last is the opacity."""
    alpha = len(page.extrasamples) == 1 and page.extrasamples[0] in (ASSOCIATED, UNASSOCIATED)
    if page.photometric == PALETTE:
        return "palette", 3, False
    if page.photometric == CMYK and channels == 4:
        return "cmyk", 3, False
    if page.bitspersample == 1 and channels == 1:
        return "bilevel", 1, False
    name = {1: "grey", 3: "rgb"}.get(channels - alpha)
    if name is None or (name == "rgb" and page.photometric not in (RGB, YCBCR) and not alpha):
        return f"{channels} channels", channels, False
    return (f"{name}+alpha" if alpha else name), channels, alpha


def _meaning(page: Any, raw: np.ndarray, channels: int) -> np.ndarray:
    if page.photometric == PALETTE:
        colours: np.ndarray = page.colormap[:, raw[..., 0]] >> 8
        return colours.astype(np.uint8).transpose(1, 2, 0)
    bits = page.bitspersample if isinstance(page.bitspersample, int) else page.bitspersample[0]
    image = kept_type(raw, "pixels")
    if image.dtype == np.uint8 and bits in (2, 4):
        image = image * np.uint8(255 // (2**bits - 1))
    if page.photometric == WHITE_IS_ZERO and image.dtype != np.float32:
        image = (2 ** max(bits, 8) - 1 - image).astype(image.dtype)
    if page.photometric == CMYK and channels == 3:
        if image.dtype != np.uint8:
            raise DataError("is CMYK of more than 8 bits, which is not read; save it as RGB")
        from PIL import Image

        return np.asarray(Image.fromarray(np.ascontiguousarray(image), "CMYK").convert("RGB"))
    return image


def _divided(image: np.ndarray) -> np.ndarray:
    """Undo the multiplication of colours by opacity."""
    white = np.iinfo(image.dtype).max
    colour, opacity = image[..., :-1].astype(np.float64), image[..., -1:].astype(np.float64)
    plain = np.divide(colour * white, opacity, out=np.zeros_like(colour), where=opacity > 0)
    return np.concatenate([np.rint(np.minimum(plain, white)).astype(image.dtype), image[..., -1:]], axis=2)


def orientation(page: Any) -> int:
    """The number (1 to 8) of a page's orientation."""
    tag = page.tags.get(274)
    return int(tag.value) if tag is not None and int(tag.value) in range(1, 9) else 1

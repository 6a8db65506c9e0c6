"""What form an image is stored in, which one form all images of a source get, and how one becomes the other.

A source has one number of channels and one type. Grey and RGB images, of 8 or 16 bits, with alpha or without, are brought together by widening:
grey is repeated to RGB, 8 bits become 16 by 257 (so that white stays white). Images of other channel counts must all have the same. Whole numbers
and floats never mix, for floats have no known white. What cannot be brought together is refused by name, the smaller part of the files first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from gnothi.contracts import DataError, SettingError

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of ITU-R BT.601, as Pillow has them."""
TYPES = {"uint8": torch.uint8, "uint16": torch.uint16, "float32": torch.float32}


class Form(NamedTuple):
    """How one image is stored."""

    stored: str
    """What a person calls it: palette, cmyk, rgb+alpha, 5 channels."""
    colour: str
    """``grey``, ``rgb`` or ``other``, once decoded."""
    alpha: bool
    """Whether the last channel is the opacity."""
    channels: int
    dtype: str


class Layout(NamedTuple):
    """The form that all images of a source get."""

    channels: int
    dtype: str
    asked: bool
    """Whether a person set the channels: only then does RGB become grey."""

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type as torch has it."""
        return TYPES[self.dtype]


def form_of(stored: str, image: np.ndarray, alpha: bool = False) -> Form:
    """The form of a decoded image [H, W, C]: 1 or 3 channels are grey and RGB, with alpha 2 and 4, the rest are other."""
    channels, dtype = image.shape[2], str(image.dtype)
    colour = {1: "grey", 3: "rgb"}.get(channels - alpha, "other")
    return Form(stored, colour, alpha and colour != "other", channels, dtype)


def agree(forms: Iterable[Form], channels: int | None = None, dtype: str | None = None) -> Layout:
    """The layout for images of these forms.

    Args:
        forms: of the images looked at, at least one.
        channels: what a person asked for instead.
        dtype: what a person asked for instead: ``uint16`` also for images of 8 bits.
    """
    families = Counter((0 if f.colour != "other" else f.channels, f.dtype == "float32") for f in forms)
    chosen = max(families, key=lambda family: (families[family], family == (0, False)))
    if dtype is not None and (dtype == "float32") != chosen[1]:
        raise SettingError(
            f"data.dtype must be {'float32' if chosen[1] else 'uint8 or uint16'} for these images, got {dtype}; floats have no known white"
        )
    own = [f for f in forms if (0 if f.colour != "other" else f.channels, f.dtype == "float32") == chosen]
    widest = chosen[0] or (3 if any(f.colour == "rgb" for f in own) else 1)
    deepest = "float32" if chosen[1] else "uint16" if any(f.dtype == "uint16" for f in own) else "uint8"
    return Layout(channels or widest, dtype or deepest, channels is not None)


def fit(image: np.ndarray, form: Form, layout: Layout) -> np.ndarray:
    """Bring one image to the layout.

    Args:
        image: [H, W, C] as decoded.
        form: of that image.
        layout: of the source.

    Returns:
        [C, H, W] of the layout's type.

    Raises:
        DataError: it cannot be done without losing something; the message lacks the name.
    """
    if form.alpha and form.channels != layout.channels:
        image, form = _over_white(image), form._replace(alpha=False, channels=form.channels - 1)
    if form.channels != layout.channels:
        image = _channels(image, form, layout)
    fitted = np.ascontiguousarray(_typed(image, form, layout).transpose(2, 0, 1))
    return fitted if fitted.flags.writeable else fitted.copy()


def _channels(image: np.ndarray, form: Form, layout: Layout) -> np.ndarray:
    if form.colour == "grey" and layout.channels == 3:
        return np.repeat(image, 3, axis=2)
    if form.colour == "rgb" and layout.channels == 1 and layout.asked:
        luma = image @ LUMA
        whole: np.ndarray = luma if image.dtype == np.float32 else np.rint(luma)
        return whole.astype(image.dtype)[..., None]
    if form.colour == "rgb" and layout.channels == 1:
        raise DataError("is in colour, the images looked at first are all grey; set data.channels=3 to keep colour everywhere, or 1 to have grey")
    raise DataError(f"has {form.channels} channels ({form.stored}), the images of this source have {layout.channels}")


def _typed(image: np.ndarray, form: Form, layout: Layout) -> np.ndarray:
    if form.dtype == layout.dtype:
        return image
    if (form.dtype, layout.dtype) == ("uint8", "uint16"):
        return image.astype(np.uint16) * np.uint16(257)
    if form.dtype == "uint16" and layout.dtype == "uint8":
        raise DataError("has 16 bits, the source has 8 (those looked at first, or data.dtype); set data.dtype=uint16 to keep all of them")
    raise DataError(f"is {form.dtype}, the images of this source are {layout.dtype}; whole numbers and floats do not mix")


def _over_white(image: np.ndarray) -> np.ndarray:
    """Lay an image [H, W, C + 1] with its opacity last over white: [H, W, C]."""
    white = np.iinfo(image.dtype).max
    wide = image.astype(np.uint64)
    colour, opacity = wide[..., :-1], wide[..., -1:]
    return ((colour * opacity + white * (white - opacity) + white // 2) // white).astype(image.dtype)


def oriented(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an image [H, W, C] upright, by the number (1 to 8) of its EXIF orientation."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image


def no_bomb(width: int, height: int, pixel: int = 1) -> None:
    """Refuse an image whose header claims more pixels than Pillow takes for safe, or more bytes than so many of 16; ``pixel`` is the bytes of one."""
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and width * height * max(1.0, pixel / 16) > most:
        raise DataError(f"is {width} x {height}, more than the {most:,} pixels that are taken for a decompression bomb; cut it into tiles")

"""Images for the page: floats in, small pictures as data URIs out. Eight bits are for the eye only; nothing is trained or measured on them."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

SMALL = 64
"""Pictures up to this side are kept losslessly (PNG), larger ones as WebP."""


def channels_note(channels: int) -> str:
    """How images of so many channels are shown, in words; empty where nothing needs saying."""
    if channels in (1, 3):
        return ""
    return f"the first three of {channels} channels are shown as red, green and blue" if channels > 3 else "the mean of the two channels is shown"


def visible(image: Tensor) -> Tensor:
    """Keep 1 or 3 channels of [..., C, H, W]: one and three as they are, the mean of two, the first three of more."""
    channels = image.shape[-3]
    return image if channels in (1, 3) else image.mean(-3, keepdim=True) if channels == 2 else image[..., :3, :, :]


def fit(image: Tensor, side: int) -> Tensor:
    """Shrink [C, H, W] so that its longer side is at most ``side``; smaller images stay as they are."""
    height, width = image.shape[-2:]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return F.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)[0]


def square(image: Tensor, side: int) -> Tensor:
    """The central square of [C, H, W], resampled to [C, side, side]."""
    height, width = image.shape[-2:]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    centre = image[:, top : top + edge, left : left + edge]
    return centre if edge == side else F.interpolate(centre[None], (side, side), mode="bilinear", antialias=True, align_corners=False)[0]


def eight_bit(image: Tensor) -> np.ndarray:
    """Turn [C, H, W] floats, 0 black and 1 white, into uint8 [H, W] or [H, W, 3]."""
    pixels = (visible(image).nan_to_num(0).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def uri(image: Tensor) -> str:
    """A data URI of [C, H, W] floats, 0 black and 1 white; PNG when small, WebP otherwise."""
    return encode(eight_bit(image), lossless=max(image.shape[-2:]) <= SMALL)


def encode(pixels: np.ndarray, lossless: bool) -> str:
    """A data URI of uint8 [H, W] or [H, W, 3]."""
    from PIL import Image

    buffer = io.BytesIO()
    if lossless:
        Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    else:
        Image.fromarray(pixels).save(buffer, "WEBP", quality=82, method=4)
    kind = "png" if lossless else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def atlas(images: Sequence[Tensor]) -> tuple[str, int, int]:
    """Lay equal squares [C, S, S] row by row on one sheet.

    Returns:
        The sheet as a data URI, its columns and its rows; image i is in row ``i // columns``, column ``i % columns``.
    """
    tiles = [eight_bit(i) for i in images]
    side, columns = tiles[0].shape[0], math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    sheet = np.zeros((rows * side, columns * side, *tiles[0].shape[2:]), np.uint8)
    for i, tile in enumerate(tiles):
        row, column = divmod(i, columns)
        sheet[row * side : (row + 1) * side, column * side : (column + 1) * side] = tile
    return encode(sheet, lossless=False), columns, rows

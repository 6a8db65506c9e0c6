"""Encoders without a network: pixels, HOG and colour histograms, for comparison and as teachers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gnothi.encoders.encoder import Encoder
from gnothi.encoders.inputs import centre, unit

SIZE = 32
"""Side to which ``pixels`` and ``hog`` bring images, in pixels."""
BINS = 16
"""Of the histogram of each channel."""
ORIENTATIONS, CELL, BLOCK_CELLS = 9, 8, 2
"""Of HOG: directions, side of a cell in pixels, side of a normalised block in cells."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


class Handcrafted(Encoder):
    """A fixed function of the pixels, for images of any number of channels.

    Args:
        name: what a person calls it.
        describe: [B, C, H, W] in [0, 1] to [B, D].
        width: D for a number of channels.
        settings: every number that the vectors depend on.
    """

    def __init__(self, name: str, describe: Callable[[Tensor], Tensor], width: Callable[[int], int], *settings: object) -> None:
        self.name, self._describe, self._width = name, describe, width
        self.dim = width(3)
        self.fingerprint = hashlib.sha256(repr((name, 1, settings)).encode()).hexdigest()[:16]

    def width(self, channels: int) -> int:
        return self._width(channels)

    def prepare(self, images: Tensor) -> Tensor:
        return self._describe(unit(images))

    def encode(self, prepared: Tensor) -> Tensor:
        return prepared


def pixels(images: Tensor) -> Tensor:
    """The image itself, its central square at 32 x 32: [B, C, H, W] -> [B, C * 1024]."""
    return centre(images, SIZE).flatten(1)


def colour(images: Tensor) -> Tensor:
    """Square root of the histogram of each channel over the whole image, 16 bins: [B, C, H, W] -> [B, C * 16].

    The cosine of two such vectors is the Bhattacharyya coefficient of the histograms, averaged over channels.
    """
    n, channels = images.shape[:2]
    bins = (images * BINS).long().clamp_(0, BINS - 1).flatten(2)  # [B, C, H * W]
    bins += BINS * torch.arange(n * channels).view(n, channels, 1)
    counts = torch.bincount(bins.flatten(), minlength=n * channels * BINS).view(n, channels * BINS)
    return (counts / bins.shape[2]).sqrt()


def hog(images: Tensor) -> Tensor:
    """Histograms of oriented gradients (Dalal and Triggs 2005) of the grey central square at 32 x 32: [B, C, H, W] -> [B, 324].

    Grey is luma for three channels and the mean for any other number; 9 directions, cells of 8 x 8 pixels, blocks of 2 x 2 cells, L2-Hys.
    """
    from skimage import feature

    weights = torch.tensor(LUMA) if images.shape[1] == 3 else torch.full((images.shape[1],), 1 / images.shape[1])
    grey = torch.einsum("bchw,c->bhw", centre(images, SIZE), weights).numpy()
    cells = {"orientations": ORIENTATIONS, "pixels_per_cell": (CELL, CELL), "cells_per_block": (BLOCK_CELLS, BLOCK_CELLS)}
    return torch.from_numpy(np.stack([feature.hog(image, **cells) for image in grey]).astype(np.float32))


def _hog_width(channels: int) -> int:
    blocks = SIZE // CELL - BLOCK_CELLS + 1
    return blocks * blocks * BLOCK_CELLS * BLOCK_CELLS * ORIENTATIONS


HANDCRAFTED: dict[str, Callable[[], Handcrafted]] = {
    "pixels": lambda: Handcrafted("pixels", pixels, lambda channels: channels * SIZE * SIZE, SIZE),
    "colour": lambda: Handcrafted("colour", colour, lambda channels: channels * BINS, BINS),
    "hog": lambda: Handcrafted("hog", hog, _hog_width, SIZE, ORIENTATIONS, CELL, BLOCK_CELLS, LUMA),
}

"""Looking at images before training: range and statistics of the channels, sizes, classes, broken files, duplicates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from gnothi.contracts import DataError, Pixels, Source
from gnothi.randomness import generator

STD_FLOOR = 1e-3
"""A channel's deviation is taken to be at least this (of a range of 1), so that a constant channel becomes 0 and not noise or infinity."""
Progress = Callable[[int, int], None]
"""Called with the number done and the number to do."""


def pixels(source: Source, sample: int = 2000, seed: int = 0) -> Pixels:
    """How the numbers of the images become a network's input.

    The range of uint8 is 0 to 255. That of uint16 and floats is what the sample holds; a constant set gets a range 1 wide that starts at its value.
    Mean and deviation by channel are of all pixels of the sample, after mapping that range to [0, 1], summed in float64; the deviation is at least
    ``STD_FLOOR``. Images that cannot be read are left out.

    Args:
        source: the images.
        sample: at most so many images, drawn without replacement.
        seed: of the draw.

    Raises:
        DataError: none of the sampled images can be read.
    """
    rows = torch.randperm(len(source), generator=generator(seed, "pixels"))[:sample].sort().values
    moments = Moments(source.channels)
    for image in readable(source, rows.tolist()):
        moments.add(image)
    return moments.pixels(source)


class Moments:
    """Running minimum, maximum, sum and sum of squares by channel, in float64."""

    def __init__(self, channels: int) -> None:
        self.n, self.shift = 0, np.zeros(channels)
        self.sum, self.squares = np.zeros(channels), np.zeros(channels)
        self.low, self.high = np.full(channels, np.inf), np.full(channels, -np.inf)

    def add(self, image: np.ndarray) -> None:
        """Count in an image [C, H, W]."""
        flat = image.reshape(len(image), -1).astype(np.float64)
        if self.n == 0:
            # Sums about the first image's mean: squares of large 16-bit or float values would cancel.
            self.shift = flat.mean(1)
        self.n += flat.shape[1]
        self.low, self.high = np.minimum(self.low, flat.min(1)), np.maximum(self.high, flat.max(1))
        flat -= self.shift[:, None]
        self.sum += flat.sum(1)
        self.squares += np.einsum("cp,cp->c", flat, flat)

    def pixels(self, source: Source) -> Pixels:
        """Range and statistics of what was counted in."""
        if self.n == 0:
            raise DataError(f"none of the images looked at can be read, the first is {source.name(0)}; gnothi data lists them")
        low, high = (0.0, 255.0) if source.dtype == torch.uint8 else (float(self.low.min()), float(self.high.max()))
        width = high - low if high > low else 1.0
        mean = self.sum / self.n
        std = np.sqrt(np.maximum(self.squares / self.n - mean**2, 0)) / width
        unit = (mean + self.shift - low) / width
        return Pixels(low, low + width, tuple(unit.tolist()), tuple(np.maximum(std, STD_FLOOR).tolist()))


def readable(source: Source, rows: list[int]) -> Iterator[np.ndarray]:
    """The images of some rows, in order, read by several threads; those that cannot be read are left out."""

    def read(row: int) -> np.ndarray | None:
        try:
            return source.image(row).numpy()
        except DataError:
            return None

    with ThreadPoolExecutor(8) as pool:
        for start in range(0, len(rows), 256):
            yield from (image for image in pool.map(read, rows[start : start + 256]) if image is not None)

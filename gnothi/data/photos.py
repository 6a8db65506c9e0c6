"""The embedded default: tiles of sixteen photographs that come with scikit-image. The class of a tile is its photograph."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gnothi.contracts import DataError
from gnothi.data.arrays import ArraySource
from gnothi.randomness import generator

PHOTOGRAPHS = (
    "astronaut", "brick", "camera", "cell", "chelsea", "coffee", "coins", "grass",
    "gravel", "hubble_deep_field", "ihc", "moon", "motorcycle_left", "retina", "rocket", "page",
)  # fmt: skip
TRAIN_END, TEST_START = 0.65, 0.70
"""Training tiles lie before the first part of the longer side, test tiles behind the second; the gap between belongs to neither."""


def photo_tiles(split: str = "train", tile: int = 32, per_class: int = 250, seed: int = 0) -> ArraySource:
    """Square crops of the photographs, resized with antialiasing.

    Crops have sides of 1.5 to 3 tiles (48 to 96 pixels for 32), or as large as the smallest region allows. Grey photographs get three equal channels.

    Args:
        split: ``train`` or ``test``; no pixel of one side is seen by the other.
        tile: side of a tile, pixels.
        per_class: tiles of each photograph.
        seed: of the places and sizes.

    Returns:
        uint8 images [16 * per_class, 3, tile, tile], sorted by class.

    Raises:
        DataError: scikit-image is not installed or lacks a photograph. Nothing is ever downloaded.
    """
    photographs = [read(name) for name in PHOTOGRAPHS]
    sides = crop_sides(tile, [photograph.size for photograph in photographs])
    images = np.empty((len(photographs) * per_class, tile, tile, 3), dtype=np.uint8)
    for number, photograph in enumerate(photographs):
        boxes = draw(photograph.size, split, per_class, sides, generator(seed, f"photos {split}", number))
        for row, box in enumerate(boxes.tolist(), start=number * per_class):
            # Cut first: resizing with PIL's `box` argument reads a little beyond the box.
            images[row] = np.asarray(photograph.crop(tuple(box)).resize((tile, tile), Image.Resampling.BILINEAR))
    names = [f"{name}-{split}-{row:03d}" for name in PHOTOGRAPHS for row in range(per_class)]
    labels = np.repeat(np.arange(len(photographs)), per_class)
    return ArraySource(images, labels, PHOTOGRAPHS, axes="NHWC", names=names, source="photos")


def region(size: tuple[int, int], split: str) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the part of a photograph of ``size`` (width, height) that belongs to a split."""
    longer = max(size)
    start, end = (0, int(TRAIN_END * longer)) if split == "train" else (int(np.ceil(TEST_START * longer)), longer)
    return (start, 0, end, size[1]) if size[0] >= size[1] else (0, start, size[0], end)


def crop_sides(tile: int, sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """Smallest and largest side of a crop, for all photographs and both splits alike (or the size would tell the class)."""
    regions = [region(size, split) for size in sizes for split in ("train", "test")]
    most = min(min(right - left, bottom - top) for left, top, right, bottom in regions)
    largest = min(3 * tile, most)
    return min(3 * tile // 2, largest // 2), largest


def draw(size: tuple[int, int], split: str, n: int, sides: tuple[int, int], random: torch.Generator) -> torch.Tensor:
    """[n, 4] int64 boxes (left, top, right, bottom), inside the region of the split."""
    left, top, right, bottom = region(size, split)
    u = torch.rand(n, 3, generator=random, dtype=torch.float64)
    side = (sides[0] + u[:, 0] * (sides[1] + 1 - sides[0])).floor()
    x = left + (u[:, 1] * (right - left - side + 1)).floor()
    y = top + (u[:, 2] * (bottom - top - side + 1)).floor()
    return torch.stack([x, y, x + side, y + side], 1).long()


def read(name: str) -> Image.Image:
    """One photograph as RGB, read from scikit-image's folder without importing it."""
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise DataError("photos come with scikit-image, which is not installed; install it with: pip install scikit-image")
    folder = Path(found.origin).parent / "data"
    path = next((p for p in (folder / f"{name}.png", folder / f"{name}.jpg") if p.is_file()), None)
    if path is None:
        raise DataError(f"photos need {name}.png or {name}.jpg, which this scikit-image does not carry; 0.25 and 0.26 do")
    with Image.open(path) as image:
        return image.convert("RGB")

"""``bow-sift``: how often each word of a visual vocabulary occurs, with OpenCV's SIFT; no network."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gnothi.contracts import DataError, Source
from gnothi.data import open as open_data
from gnothi.encoders.encoder import Encoder
from gnothi.encoders.inputs import centre, unit
from gnothi.randomness import generator

SIDE, STEP, SIZES = 128, 8, (16, 24, 32)
"""Side to which images are brought, distance of points, and sides of the patches that are described at each, in pixels of that side."""
DIAMETERS = 6
"""Patches that OpenCV describes are so many times as wide as the keypoint's diameter."""
WORDS = 500
"""Of the vocabulary; fewer where the sample has fewer than ten descriptors a word."""
IMAGES, DESCRIPTORS = 300, 40_000
"""Of the seeded sample on which the vocabulary is fitted."""
ROUNDS = 10
"""Iterations of k-means."""
CELLS = 5
"""Histograms of an image: the whole, and its four quarters."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


class BowSift(Encoder):
    """Bag of visual words: dense RootSIFT, each at its nearest word, counted in the whole image and in its quarters.

    Grey is luma for three channels and the mean for any other number. The vocabulary comes from a seeded sample of the data that stand behind the
    colon, or of the photographs that come with the installation; it is fitted when the first image is described.

    Args:
        name: ``bow-sift`` or ``bow-sift:DATA``.
    """

    dim = WORDS * CELLS

    def __init__(self, name: str) -> None:
        self.name = name
        self.source: Source = open_data(name.partition(":")[2] or "photos")
        about = ("bow-sift", 1, self.source.fingerprint(), SIDE, STEP, SIZES, WORDS, IMAGES, DESCRIPTORS, ROUNDS, LUMA)
        self.fingerprint = hashlib.sha256(repr(about).encode()).hexdigest()[:16]

    def prepare(self, images: Tensor) -> Tensor:
        """[B, C, H, W] of any type to grey bytes [B, side, side]."""
        images = unit(images)
        weights = torch.tensor(LUMA) if images.shape[1] == 3 else torch.full((images.shape[1],), 1 / images.shape[1])
        return torch.einsum("bchw,c->bhw", centre(images, SIDE), weights).mul(255).round().clamp(0, 255).byte()

    def encode(self, prepared: Tensor) -> Tensor:
        """[B, side, side] to [B, words x 5], square roots of shares, of unit length."""
        words = self.vocabulary
        rows = [_counts(_nearest(rootsift(grey), words), len(words)) for grey in prepared.numpy()]
        return F.normalize(F.pad(torch.stack(rows), (0, (WORDS - len(words)) * CELLS)), dim=1)

    @cached_property
    def vocabulary(self) -> Tensor:
        """[words, 128], by k-means on descriptors of random images.

        Raises:
            DataError: no image of the sample can be read.
        """
        import faiss

        random = generator(0, "bow-sift images")
        rows = torch.randperm(len(self.source), generator=random)[:IMAGES].tolist()
        found = [x for row in rows if (x := self._described(row)) is not None]
        if not found:
            raise DataError(f"{self.name}: no image of the sample for the vocabulary can be read")
        x = torch.cat(found)
        x = x[torch.randperm(len(x), generator=random)[:DESCRIPTORS]]
        k = max(1, min(WORDS, len(x) // 10))
        kmeans = faiss.Kmeans(x.shape[1], k, niter=ROUNDS, seed=1, min_points_per_centroid=1, max_points_per_centroid=len(x))
        kmeans.train(x.contiguous().numpy())
        return torch.from_numpy(np.array(kmeans.centroids))

    def _described(self, row: int) -> Tensor | None:
        try:
            return rootsift(self.prepare(self.source.image(row)[None])[0].numpy())
        except DataError:
            return None


def rootsift(grey: np.ndarray) -> Tensor:
    """Square roots of SIFT descriptors of sum 1 (Arandjelovic and Zisserman 2012) on a grid of points, at each size: [side, side] -> [P, 128].

    Points stand row by row, and the patches of a point together. Orientations are not turned to the gradient: pictures here have an up. A point
    without any gradient says nothing, all zeros.
    """
    import cv2

    sift: Any = cv2
    places = np.arange(STEP / 2, SIDE, STEP)
    points = [cv2.KeyPoint(float(x), float(y), size / DIAMETERS, 0.0) for y in places for x in places for size in SIZES]
    _, described = sift.SIFT_create().compute(np.ascontiguousarray(grey), points)
    x = torch.from_numpy(np.asarray(described, dtype=np.float32))
    return (x / x.sum(1, keepdim=True).clamp_min(1e-12)).sqrt()


def _nearest(x: Tensor, words: Tensor) -> Tensor:
    """[P] nearest word of each descriptor, -1 of those without gradient."""
    index = (x @ words.T - words.square().sum(1) / 2).argmax(1)
    return torch.where(x.abs().sum(1) > 0, index, -1)


def _counts(index: Tensor, words: int) -> Tensor:
    """Square roots of shares in the whole image and in its quarters, [5 x words]; the quarters of a row of two stand side by side."""
    side = SIDE // STEP
    at = torch.arange(len(index)) // len(SIZES)
    quarter = 2 * (at // side * 2 // side) + at % side * 2 // side
    parts = [index, *(index[quarter == q] for q in range(4))]
    counts = torch.stack([torch.bincount(part[part >= 0], minlength=words).float() for part in parts])
    return (counts / counts.sum(1, keepdim=True).clamp_min(1)).sqrt().flatten()

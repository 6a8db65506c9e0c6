"""What crops of a step depend on, and cutting them from an array on the device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from gnothi.data.order import Order
from gnothi.randomness import generator
from gnothi.views.crops import Boxes, CropSpec, cut, draw, uniforms


class Crop(NamedTuple):
    """One crop of every image, and what its random numbers hang on."""

    spec: CropSpec
    owner: str
    """"method", or the auxiliary that asked for it."""
    number: int
    """Which of the owner's crops, from 0."""


@dataclass(frozen=True)
class Joint:
    """What crops of a step depend on besides the images: the seed, the order of the joint batch, and the part of it that this process has."""

    seed: int
    order: Order
    part: slice

    def rows(self, step: int) -> Tensor:
        """[B] row numbers of this process's part."""
        return self.order.rows(step)[self.part].clone()

    def uniforms(self, crop: Crop, step: int) -> Tensor:
        """[B, K] random numbers of a crop, drawn for the joint batch."""
        return uniforms(generator(self.seed, f"crops {crop.owner}", step, crop.number), self.order.batch)[self.part]

    def replacement(self, step: int, position: int, attempt: int) -> int:
        """A row instead of a broken one at a position of this process's part."""
        chance = generator(self.seed, "replacement", step, self.part.start + position, attempt)
        return int(torch.randint(self.order.n, (), generator=chance))


@dataclass(frozen=True)
class Cuts:
    """Crops of a batch in the numbers of the source."""

    index: Tensor
    """[B] row numbers."""
    images: tuple[Tensor, ...]
    """A crop each: [B, C, size, size]."""
    boxes: tuple[Boxes, ...]
    """A crop each, in pixels of the full resolution."""
    broken: tuple[tuple[int, str, str], ...] = ()
    """Row, name and what was wrong of every image that was replaced."""

    def pin_memory(self) -> Cuts:
        """The same in memory that a GPU can fetch by itself; torch's DataLoader calls it."""
        return replace(self, images=tuple(i.pin_memory() for i in self.images))


class FromArray:
    """Cut the crops of a step from [N, C, H, W] images on a device, all of a kind at once. Nothing is broken there, and nothing to wait for."""

    def __init__(self, array: Tensor, crops: tuple[Crop, ...], joint: Joint) -> None:
        self.array, self.crops, self.joint = array, crops, joint
        self.broken: dict[str, tuple[str, int]] = {}
        self.waited = 0.0

    def __getitem__(self, step: int) -> Cuts:
        index = self.joint.rows(step)
        images = self.array[index.to(self.array.device)]  # [B, C, H, W]
        heights, widths = torch.full((len(index),), images.shape[2]), torch.full((len(index),), images.shape[3])
        boxes = tuple(draw(self.joint.uniforms(c, step), heights, widths, c.spec) for c in self.crops)
        cuts = tuple(cut(images, b.boxes, c.spec.size, b.flips, b.turns if c.spec.turns else None) for b, c in zip(boxes, self.crops, strict=True))
        return Cuts(index, cuts, boxes)

    def close(self) -> None:
        """Nothing is open."""

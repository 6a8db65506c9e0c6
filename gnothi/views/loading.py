"""Cut the crops of a batch: from an array on the device, or image by image in loader processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from gnothi.contracts import DataError, GnothiError, Source
from gnothi.data.order import Order
from gnothi.randomness import generator
from gnothi.views.crops import Boxes, CropSpec, cut, draw, uniforms

REPLACEMENTS = 50
"""Rows drawn in place of a broken image before the batch is given up."""


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
    """Cut the crops of a step from [N, C, H, W] images on a device, all of a kind at once."""

    def __init__(self, array: Tensor, crops: tuple[Crop, ...], joint: Joint) -> None:
        self.array, self.crops, self.joint = array, crops, joint

    def __getitem__(self, step: int) -> Cuts:
        index = self.joint.rows(step)
        images = self.array[index.to(self.array.device)]  # [B, C, H, W]
        heights, widths = torch.full((len(index),), images.shape[2]), torch.full((len(index),), images.shape[3])
        boxes = tuple(draw(self.joint.uniforms(c, step), heights, widths, c.spec) for c in self.crops)
        cuts = tuple(cut(images, b.boxes, c.spec.size, b.flips, b.turns if c.spec.turns else None) for b, c in zip(boxes, self.crops, strict=True))
        return Cuts(index, cuts, boxes)


class FromSource(Dataset["Cuts | GnothiError"]):
    """Read and cut a batch image by image: a dataset whose item number is a step and whose item is a whole batch.

    Every image is read once, at the smallest resolution that still covers all its crops. 8-bit images give 8-bit crops, other types floats.
    A broken image is replaced by a row that depends on nothing but seed, step and position. An error of ours is returned, not raised, because
    torch would wrap it in the traceback of the loader process.
    """

    def __init__(self, source: Source, crops: tuple[Crop, ...], joint: Joint) -> None:
        self.source, self.crops, self.joint = source, crops, joint

    def __getitem__(self, step: int) -> Cuts | GnothiError:
        try:
            return self._load(step)
        except GnothiError as error:
            return error

    def _load(self, step: int) -> Cuts:
        rows = self.joint.rows(step)
        n = len(rows)
        exact = torch.uint8 if self.source.dtype == torch.uint8 else torch.float32
        images = tuple(torch.empty(n, self.source.channels, c.spec.size, c.spec.size, dtype=exact) for c in self.crops)
        uniform = [self.joint.uniforms(c, step) for c in self.crops]
        shapes = torch.ones(n, 2, dtype=torch.int64)
        broken: list[tuple[int, str, str]] = []
        left = list(range(n))
        for attempt in range(REPLACEMENTS):
            # All shapes, then all boxes, then the images: drawing for one image takes nearly as long as for all.
            held: dict[int, Tensor] = {}
            errors = _errors(left, lambda i, held=held: self._look(int(rows[i]), i, shapes, held))  # type: ignore[misc]
            boxes = tuple(draw(u, shapes[:, 0], shapes[:, 1], c.spec) for u, c in zip(uniform, self.crops, strict=True))
            good = [i for i in left if i not in errors]
            errors |= _errors(good, lambda i, held=held, boxes=boxes: self._cut(int(rows[i]), i, shapes[i].tolist(), held, boxes, images))  # type: ignore[misc]
            left = sorted(errors)
            if not left:
                return Cuts(rows, images, boxes, tuple(broken))
            for i in left:
                broken.append((int(rows[i]), self.source.name(int(rows[i])), str(errors[i])))
                rows[i] = self.joint.replacement(step, i, attempt)
        raise DataError(f"{broken[-1][2]}; nor could {REPLACEMENTS - 1} other images drawn in its place be read")

    def _look(self, row: int, i: int, shapes: Tensor, held: dict[int, Tensor]) -> None:
        """Write the shape of an image into ``shapes``; where only the pixels tell it, hold them, to read nothing twice."""
        if type(self.source).shape is Source.shape:
            held[i] = self.source.image(row)
            shapes[i] = torch.tensor(held[i].shape[1:])
        else:
            shapes[i] = torch.tensor(self.source.shape(row))

    def _cut(self, row: int, i: int, shape: list[int], held: dict[int, Tensor], boxes: tuple[Boxes, ...], images: tuple[Tensor, ...]) -> None:
        """Read an image and write its crops into place ``i`` of each of ``images``."""
        shrink = _shrink([b.boxes[i] for b in boxes], self.crops)
        image = held.pop(i) if i in held else self.source.image(row, shrink)
        ratio = _ratio(image, shape, shrink)
        for crop, box, out in zip(self.crops, boxes, images, strict=True):
            one = _cut_one(image, box.boxes[i] * ratio, crop.spec.size, box.flips[i : i + 1], box.turns[i : i + 1])
            out[i] = one.add_(0.5).clamp_(0, 255) if out.dtype == torch.uint8 else one  # the assignment rounds down


def _errors(positions: list[int], action: Callable[[int], object]) -> dict[int, DataError]:
    """Act on each position; the errors of those whose image cannot be used."""
    errors = {}
    for i in positions:
        try:
            action(i)
        except DataError as error:
            errors[i] = error
    return errors


def _shrink(boxes: list[Tensor], crops: tuple[Crop, ...]) -> int:
    """The largest of 8, 4, 2, 1 at which every box still has at least as many pixels as its crop."""
    spare = min(float(box[2:].min()) / crop.spec.size for box, crop in zip(boxes, crops, strict=True))
    return next((s for s in (8, 4, 2) if s <= spare), 1)


def _ratio(image: Tensor, shape: list[int], shrink: int) -> Tensor:
    """Pixels of [C, H, W] to a pixel of the full resolution, [4] for a box; a decoder that shrinks rounds the shape up, but not the scale."""
    if list(image.shape[1:]) == [math.ceil(side / shrink) for side in shape]:
        return torch.full((4,), 1 / shrink)
    return torch.tensor([image.shape[2] / shape[1], image.shape[1] / shape[0]]).repeat(2)


def _cut_one(image: Tensor, box: Tensor, size: int, flip: Tensor, turn: Tensor) -> Tensor:
    """Cut one crop [C, size, size] of [C, H, W], looking at no more of the image than the box touches."""
    left, top, width, height = box.tolist()
    x, y = math.floor(left), math.floor(top)
    part = image[:, y : math.ceil(top + height), x : math.ceil(left + width)]
    return cut(part[None], torch.tensor([[left - x, top - y, width, height]]), size, flip, turn)[0]

"""Crops: boxes drawn for a batch of images of any sizes, and cut with antialiasing in two batched products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from gnothi.contracts import Spec
from gnothi.views.photometric import PhotometricSpec

TRIES = 10
"""Boxes tried before the centre of the image is taken, as in torchvision."""

_CHUNK = 1 << 21
"""Numbers that a cut holds at a time: small enough for a processor's cache, large enough to keep a GPU busy."""


class CropSpec(Spec):
    """How one crop of an image is made."""

    size: int = Field(default=32, gt=0)
    """Side of the crop in pixels."""
    area: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest part of the image's area."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width over height, drawn evenly on a logarithmic scale."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of mirroring left and right."""
    turns: bool = False
    """Turn by 0, 90, 180 or 270 degrees with equal probability: for images without an up."""
    photometric: PhotometricSpec = PhotometricSpec()
    """What happens to the colours."""

    @field_validator("area", "aspect")
    @classmethod
    def _range(cls, pair: tuple[float, float], info: ValidationInfo) -> tuple[float, float]:
        bound = " <= 1" if info.field_name == "area" else ""
        if not 0 < pair[0] <= pair[1] or (bound and pair[1] > 1):
            raise ValueError(f"must be two numbers with 0 < smallest <= largest{bound}, got {pair[0]}, {pair[1]}")
        return pair


@dataclass(frozen=True)
class Boxes:
    """Where the crops of a batch lie and how they are turned."""

    boxes: Tensor
    """[B, 4] float32: left, top, width, height in source pixels; pixel j covers j to j + 1."""
    flips: Tensor
    """[B] bool: mirrored left-right after the cut."""
    turns: Tensor
    """[B] int64: quarter turns anticlockwise (``torch.rot90``), after the flip."""

    def __getitem__(self, part: slice | Tensor) -> Boxes:
        return Boxes(self.boxes[part], self.flips[part], self.turns[part])

    def to(self, device: torch.device) -> Boxes:
        """The same on a device."""
        return Boxes(self.boxes.to(device), self.flips.to(device), self.turns.to(device))


def uniforms(generator: torch.Generator, n: int) -> Tensor:
    """The random numbers that ``draw`` needs for n images: [n, K] in [0, 1), a row an image."""
    return torch.rand(n, 2 * TRIES + 4, generator=generator, dtype=torch.float64)


def draw(uniforms: Tensor, heights: Tensor, widths: Tensor, spec: CropSpec) -> Boxes:
    """Choose a box, a flip and a turn for every image.

    As torchvision's RandomResizedCrop, without its rounding to whole pixels: area and logarithm of the aspect are uniform, the first of ten
    boxes that fits is placed evenly, and where none fits the largest central box of the nearest allowed aspect is taken. An image's box depends
    on nothing but its own row of ``uniforms`` and its own size.

    Args:
        uniforms: [B, K] in [0, 1), of the function of that name.
        heights: [B] in pixels.
        widths: [B] in pixels.
        spec: area, aspect, flip and turns.
    """
    u, high, wide = uniforms.double(), heights.double()[:, None], widths.double()[:, None]  # [B, K], [B, 1], [B, 1]
    area = high * wide * (spec.area[0] + (spec.area[1] - spec.area[0]) * u[:, :TRIES])  # [B, TRIES]
    low, up = torch.tensor(spec.aspect, dtype=torch.float64).log().tolist()
    aspect = torch.exp(low + (up - low) * u[:, TRIES : 2 * TRIES])  # [B, TRIES]
    w, h = (area * aspect).sqrt(), (area / aspect).sqrt()
    # The central box, for images so narrow that no try fits, stands behind the tries.
    central = (wide / high).clamp(*spec.aspect)  # [B, 1]
    w = torch.cat([w, torch.minimum(wide, high * central)], 1)
    h = torch.cat([h, torch.minimum(high, wide / central)], 1)
    fits = (w[:, :TRIES] <= wide) & (h[:, :TRIES] <= high)
    first = torch.cat([fits, torch.ones_like(fits[:, :1])], 1).long().argmax(1, keepdim=True)  # [B, 1]
    w, h = w.gather(1, first), h.gather(1, first)
    place = torch.where(first == TRIES, 0.5, u[:, 2 * TRIES : 2 * TRIES + 2])  # [B, 2]
    boxes = torch.cat([(wide - w) * place[:, :1], (high - h) * place[:, 1:], w, h], 1).float()
    turns = (u[:, -1] * 4).long() if spec.turns else torch.zeros(len(u), dtype=torch.long)
    return Boxes(boxes, u[:, -2] < spec.flip, turns)


def cut(images: Tensor, boxes: Tensor, size: int, flips: Tensor | None = None, turns: Tensor | None = None) -> Tensor:
    """Cut a box of every image and resize it with antialiasing.

    Bilinear with triangle weights, as torchvision's ``resized_crop(antialias=True)`` on boxes of whole pixels: shrinking widens the triangle,
    enlarging does not, and the weights over the pixels that the box touches sum to 1. Nothing is rounded: 8-bit images give floats in [0, 255].

    Args:
        images: [B, C, H, W] of any real type.
        boxes: [B, 4] left, top, width, height in pixels, fractions allowed.
        size: side of the crops.
        flips: [B] bool, mirror left-right after the cut.
        turns: [B] quarter turns anticlockwise, after the flip.

    Returns:
        [B, C, size, size] floats in the range of the input.
    """
    n, channels, height, width = images.shape
    mirror_x, mirror_y = _mirrors(flips, turns, n, images.device)
    boxes = boxes.to(images.device)
    out = torch.empty(n, channels, size, size, device=images.device)
    step = max(1, _CHUNK // (channels * height * width + size * (height + width)))
    for part in (slice(i, i + step) for i in range(0, n, step)):
        left, top, wide, high = boxes[part].float().unbind(1)
        across = _weights(left, wide, size, width, mirror_x[part])  # [b, size, W]
        down = _weights(top, high, size, height, mirror_y[part])  # [b, size, H]
        rows = images[part].float().reshape(-1, channels * height, width) @ across.mT  # [b, C * H, size]
        torch.matmul(down[:, None], rows.view(-1, channels, height, size), out=out[part])
    if turns is not None:
        odd = (turns % 2 == 1).nonzero()[:, 0].to(out.device)  # where turns lie on the CPU, no GPU has to be waited for
        out[odd] = out[odd].mT
    return out


def _mirrors(flips: Tensor | None, turns: Tensor | None, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Write flips and turns as mirrors in x and in y, each [B] bool; odd turns are to be transposed afterwards."""
    x = torch.zeros(n, dtype=torch.bool, device=device) if flips is None else flips.to(device)
    if turns is None:
        return x, torch.zeros_like(x)
    turns = turns.to(device)
    return x ^ ((turns == 1) | (turns == 2)), turns >= 2


def _weights(start: Tensor, length: Tensor, size: int, pixels: int, mirror: Tensor) -> Tensor:
    """Triangle weights of ``pixels`` source pixels for ``size`` target pixels along one axis.

    Args:
        start: [B] where the box begins.
        length: [B] how long it is.
        size: target pixels.
        pixels: source pixels.
        mirror: [B] bool, target pixels in reverse order.

    Returns:
        [B, size, pixels]; each row sums to 1.
    """
    target = torch.arange(size, device=start.device)
    target = torch.where(mirror[:, None], size - 1 - target, target)  # [B, size]
    scale = length / size  # [B]
    source = torch.arange(pixels, device=start.device) - start[:, None]  # [B, pixels]: left edges, from the start of the box
    touched = (source > -1) & (source < length[:, None])  # [B, pixels]
    centres = scale[:, None] * (target + 0.5)  # [B, size]
    distance = ((source + 0.5)[:, None, :] - centres[:, :, None]).abs_()  # [B, size, pixels]
    weights = distance.div_(scale.clamp(min=1)[:, None, None]).neg_().add_(1).clamp_(min=0).mul_(touched[:, None, :])
    return weights.div_(weights.sum(-1, keepdim=True))

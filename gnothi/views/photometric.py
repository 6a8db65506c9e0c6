"""Photometric operations on a batch in [0, 1]: one value an image, drawn and applied apart, without a loop over images.

The order is fixed: brightness, that of each channel, contrast, saturation, hue (together they are the jitter), then grey, blur, solarise. What an
operation means for images that do not have three channels stands in its docstring; what has no meaning is refused by ``check``, never skipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from gnothi.contracts import SettingError, Spec


class PhotometricSpec(Spec):
    """What happens to the colours of a crop; by default nothing."""

    jitter: float = Field(default=0.0, ge=0, le=1)
    """Probability that brightness, that of each channel, contrast, saturation and hue change, all five together."""
    brightness: float = Field(default=0.0, ge=0)
    """Factor from [1 - brightness, 1 + brightness], never below 0."""
    channel_brightness: float = Field(default=0.0, ge=0)
    """A factor for each channel by itself, from [1 - channel_brightness, 1 + channel_brightness], never below 0; at least 2 channels."""
    contrast: float = Field(default=0.0, ge=0)
    """Factor from [1 - contrast, 1 + contrast], never below 0."""
    saturation: float = Field(default=0.0, ge=0)
    """Factor from [1 - saturation, 1 + saturation], never below 0; at least 2 channels."""
    hue: float = Field(default=0.0, ge=0, le=0.5)
    """Part of the colour circle from [-hue, hue]; 3 channels."""
    grey: float = Field(default=0.0, ge=0, le=1)
    """Probability of losing colour; at least 2 channels."""
    blur: float = Field(default=0.0, ge=0, le=1)
    """Probability of a Gaussian blur."""
    sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur in pixels of the crop."""
    solarise: float = Field(default=0.0, ge=0, le=1)
    """Probability of inverting all values from the threshold up."""
    threshold: float = Field(default=0.5, ge=0, le=1)
    """Where solarising begins, in [0, 1]."""

    @field_validator("sigma")
    @classmethod
    def _sigma(cls, sigma: tuple[float, float]) -> tuple[float, float]:
        if not 0 < sigma[0] <= sigma[1]:
            raise ValueError(f"must be two numbers with 0 < smallest <= largest, got {sigma[0]}, {sigma[1]}")
        return sigma


@dataclass(frozen=True)
class Draws:
    """One value an image for each operation, None where the recipe does not have it; on the CPU, lest a GPU be asked which images get what."""

    jitter: Tensor | None = None
    """[B] bool: gets the five below."""
    brightness: Tensor | None = None
    """[B] factors."""
    channel_brightness: Tensor | None = None
    """[B, C] factors."""
    contrast: Tensor | None = None
    """[B] factors."""
    saturation: Tensor | None = None
    """[B] factors."""
    hue: Tensor | None = None
    """[B] parts of the colour circle in [-0.5, 0.5]."""
    grey: Tensor | None = None
    """[B] bool."""
    blur: Tensor | None = None
    """[B] bool."""
    sigma: Tensor | None = None
    """[B] standard deviations in pixels."""
    reach: int = 0
    """Pixels that the blur looks to each side."""
    solarise: Tensor | None = None
    """[B] bool."""
    threshold: float = 0.5

    def __getitem__(self, part: slice | Tensor) -> Draws:
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **{k: v[part] for k, v in tensors.items()})


def check(spec: PhotometricSpec, channels: int, name: str = "views") -> None:
    """Refuse operations that have no meaning for images of so many channels.

    Raises:
        SettingError: names the first such operation and what to do.
    """
    rules = (
        ("hue", spec.hue if spec.jitter else 0, channels == 3, "exactly 3 channels"),
        ("channel_brightness", spec.channel_brightness if spec.jitter else 0, channels >= 2, "at least 2 channels"),
        ("saturation", spec.saturation if spec.jitter else 0, channels >= 2, "at least 2 channels"),
        ("grey", spec.grey, channels >= 2, "at least 2 channels"),
    )
    for operation, strength, holds, rule in rules:
        if strength and not holds:
            raise SettingError(f'{name}.{operation} needs {rule}, got {channels}; set it to 0 or take the view recipe "any-channels"')


def draw(generator: torch.Generator, n: int, spec: PhotometricSpec, channels: int = 3) -> Draws:
    """Draw the values of n images: a row of uniform numbers each, so an image's values do not depend on the settings of other operations."""
    u = torch.rand(n, 9, generator=generator).unbind(1)

    def factors(strength: float, u: Tensor) -> Tensor | None:
        low = max(0.0, 1 - strength)
        return low + (1 + strength - low) * u if strength and spec.jitter else None

    low, high = spec.sigma
    return Draws(
        jitter=u[0] < spec.jitter if spec.jitter else None,
        brightness=factors(spec.brightness, u[1]),
        channel_brightness=factors(spec.channel_brightness, torch.rand(n, channels, generator=generator)),
        contrast=factors(spec.contrast, u[2]),
        saturation=factors(spec.saturation, u[3]),
        hue=spec.hue * (2 * u[4] - 1) if spec.hue and spec.jitter else None,
        grey=u[5] < spec.grey if spec.grey else None,
        blur=u[6] < spec.blur if spec.blur else None,
        sigma=low + (high - low) * u[7] if spec.blur else None,
        reach=math.ceil(3 * high),
        solarise=u[8] < spec.solarise if spec.solarise else None,
        threshold=spec.threshold,
    )


def apply(images: Tensor, draws: Draws) -> Tensor:
    """Change the images that are drawn to change; the others keep every bit.

    Args:
        images: [B, C, H, W] floats in [0, 1].
        draws: values of the same B images.

    Returns:
        [B, C, H, W] floats in [0, 1].
    """
    images = images.clone()
    light = (brightness, draws.brightness), (brightness, draws.channel_brightness)
    jitter = (*light, (contrast, draws.contrast), (saturation, draws.saturation), (hue, draws.hue))
    _change(images, draws.jitter, *((f, values) for f, values in jitter if values is not None))
    _change(images, draws.grey, (lambda x, _: grey(x).expand_as(x), None))
    _change(images, draws.blur, (lambda x, sigma: blur(x, sigma, draws.reach), draws.sigma))
    _change(images, draws.solarise, (lambda x, _: solarise(x, draws.threshold), None))
    return images


def _change(images: Tensor, which: Tensor | None, *operations: tuple[Callable[[Tensor, Tensor], Tensor], Tensor | None]) -> None:
    """Apply operations, one after the other, in place to the images that ``which`` names; each takes its values of those images."""
    if which is None or not operations or not which.any():
        return
    rows = which.nonzero()[:, 0]
    there = rows.to(images.device)
    part = images[there]
    for operation, values in operations:
        part = operation(part, part if values is None else values[rows].to(images))
    images[there] = part


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the channels of [B, C, H, W] by factors [B], or [B, C]."""
    return (images * factors.view(len(factors), -1, 1, 1)).clamp_(0, 1)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Blend [B, C, H, W] with the mean of its ``grey``: factor 0 gives that mean, 1 the image; [B] factors."""
    factors = factors[:, None, None, None]
    return (images * factors).add_((1 - factors) * grey(images).mean((1, 2, 3), keepdim=True)).clamp_(0, 1)


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Blend every pixel of [B, C, H, W] with its ``grey``: factor 0 gives grey, 1 the image; [B] factors, C >= 2."""
    return torch.lerp(grey(images), images, factors[:, None, None, None]).clamp_(0, 1)


def hue(images: Tensor, shifts: Tensor) -> Tensor:
    """Turn the colour circle of [B, 3, H, W] by [B] parts of a full turn; lightest and darkest channel values of a pixel (HSV) stay.

    With h in [0, 6) sixths of the circle, red is ``low + chroma * clamp(|h - 3| - 1)``, green ``low + chroma * clamp(2 - |h - 2|)`` and blue
    ``low + chroma * clamp(2 - |h - 4|)``, clamped to [0, 1].
    """
    red, green, blue = images.unbind(1)  # [B, H, W]
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    # A lerp with weights of exactly 0 and 1 chooses as torch.where does, in a twentieth of its time on a CPU.
    h = torch.lerp((red - green).add_(chroma, alpha=4), (blue - red).add_(chroma, alpha=2), high.clone().eq_(green))  # [B, H, W]
    h = torch.lerp(h, green - blue, high.eq_(red)).div_(chroma.clamp(min=1e-12)).add_(6 * shifts[:, None, None])
    h.sub_((h / 6).floor_(), alpha=6)
    out = torch.empty_like(images)
    for channel, centre in enumerate((3, 2, 4)):
        part = out[:, channel]
        torch.sub(h, centre, out=part).abs_()
        (part.sub_(1) if channel == 0 else part.neg_().add_(2)).clamp_(0, 1).mul_(chroma).add_(low)
    return out


def grey(images: Tensor) -> Tensor:
    """Lightness [B, 1, H, W] of [B, C, H, W]: with ITU-R 601 weights of three channels, else the mean of the channels."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    red, green, blue = torch.split(images, 1, dim=1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def blur(images: Tensor, sigmas: Tensor, reach: int) -> Tensor:
    """Blur every channel of [B, C, H, W] with Gaussians of [B] standard deviations.

    As torchvision's ``gaussian_blur`` with a kernel of 2 x reach + 1 pixels and reflected borders; an axis of n <= reach pixels takes reach n - 1. A
    product with a banded matrix along each axis: on a CPU as fast as a grouped convolution up to 96 pixels, at 224 pixels 1.5 times as long.
    """
    down, across = (_band(sigmas, reach, side) for side in images.shape[2:])  # [B, H, H], [B, W, W]
    rows = images.flatten(1, 2) @ across.mT
    return (down[:, None] @ rows.view_as(images)).clamp_(0, 1)


def _band(sigmas: Tensor, reach: int, size: int) -> Tensor:
    """The blur along one axis as matrices: [B, size, size], rows sum to 1."""
    reach = min(reach, size - 1)
    offsets = torch.arange(-reach, reach + 1, device=sigmas.device)
    taps = torch.exp(-0.5 * (offsets / sigmas[:, None]) ** 2)  # [B, K]
    taps = taps / taps.sum(1, keepdim=True)
    source = (torch.arange(size, device=sigmas.device)[:, None] + offsets).abs()  # [size, K]
    source = size - 1 - (size - 1 - source).abs()
    band: Tensor = torch.tensordot(taps, F.one_hot(source, size).to(taps), dims=([1], [1]))
    return band


def solarise(images: Tensor, threshold: float) -> Tensor:
    """Invert the values of [B, C, H, W] from ``threshold`` up."""
    return images.clone().ge_(threshold).sub_(images).abs_()  # |1 - x| or |0 - x|: torch.where takes ten times as long on a CPU

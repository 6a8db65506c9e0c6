"""What images go through before an encoder sees them: axes, centre, range."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gnothi.contracts import EncoderError, Pixels
from gnothi.views.crops import cut


def channels_first(images: Tensor | np.ndarray, channels: int | None, ndim: int) -> Tensor:
    """Bring [N, H, W, C] or [N, C, H, W] (``ndim`` 4), or one image (3, or 2 for a grey one) to channels first.

    The channel axis is the one that has ``channels``, the first where both have; where ``channels`` is None, the one smaller than both others.
    """
    x = images if isinstance(images, Tensor) else torch.from_numpy(np.array(images))
    if x.ndim == ndim - 1:
        x = x.unsqueeze(-3)  # grey, without a channel axis
    if x.ndim != ndim:
        raise EncoderError(f"images must be [N, C, H, W] or [N, H, W, C], or a list of images, got the shape {tuple(x.shape)}")
    first, height, last = x.shape[-3:]
    if channels is not None and channels not in (first, last):
        raise EncoderError(f"images must have {channels} channels, got the shape {tuple(x.shape)}")
    is_last = last == channels != first if channels is not None else last < min(first, height)
    return x.movedim(-1, -3).contiguous() if is_last else x


def centre(images: Tensor, size: int) -> Tensor:
    """Cut the central square of the short side and bring it to ``size`` with antialiasing, in one step.

    Args:
        images: [B, C, H, W] of any type and of one size.
        size: side of the square, in pixels.

    Returns:
        [B, C, size, size] floats in the images' own range; the very numbers where the images are of that size already.
    """
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images.float()
    side = min(height, width)
    box = torch.tensor([(width - side) / 2, (height - side) / 2, float(side), float(side)])
    return cut(images, box.expand(len(images), 4), size)


def unit(images: Tensor) -> Tensor:
    """[B, C, H, W] to floats in [0, 1]: uint8 by 255, other types by each image's own smallest and largest number."""
    if images.dtype == torch.uint8:
        return images.float() / 255
    images = images.float()
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)


def check_range(name: str, pixels: Pixels, images: Tensor) -> None:
    """Refuse images whose numbers are plainly not on the scale of those that an encoder was trained on.

    An encoder of 8-bit images takes uint8, or floats on the scale of 0 to 255; one of other images takes anything but uint8.
    """
    bytes_wanted = (pixels.low, pixels.high) == (0, 255)
    if images.dtype == torch.uint8 and not bytes_wanted:
        raise EncoderError(
            f"{name} was trained on numbers from {pixels.low:g} to {pixels.high:g}, these images are 8-bit; give them on that scale, as floats"
        )
    if images.dtype == torch.uint16 and bytes_wanted:
        raise EncoderError(f"{name} was trained on 8-bit images, these are 16-bit; divide them by 257 first, as floats")
    if images.is_floating_point() and bytes_wanted and images.numel() and float(images.amax()) <= 1:
        raise EncoderError(f"{name} was trained on numbers from 0 to 255, these images lie below 1; multiply them by 255")

"""Backbones by name behind one contract. The only file that knows timm, and it imports it only when a timm name is asked for."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import Field
from torch import nn

from gnothi.contracts import SettingError, Spec, did_you_mean
from gnothi.models.micro import MicroResNet, MicroViT
from gnothi.randomness import seeded

MICRO: dict[str, type[nn.Module]] = {"micro-resnet": MicroResNet, "micro-vit": MicroViT}
LEAST_CELLS = 7
"""A patch grid should have at least this many cells a side: what 224 pixels give with patches of 32."""


class BackboneSpec(Spec):
    """The network that learns."""

    name: str = "micro-resnet"
    """micro-resnet, micro-vit, or any timm name."""
    stem: str | None = None
    """First layers of a ResNet: "cifar" (3x3 of stride 1, no max-pool) or "plain" (as timm has it). None: cifar for crops of up to 64 pixels."""
    patch_size: int | None = Field(None, ge=1)
    """Side of a ViT's patches in pixels. None: the network's own, or the largest power of two below that leaves at least 7 cells a side (32 pixels: 4)."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth of the last block, in [0, 1)."""
    mask_token: bool = False
    """Learn a token that stands for hidden patches; ViTs only, for masked views."""
    pretrained: bool = False
    """Start from timm's weights; the first use downloads them."""
    args: dict[str, Any] = {}
    """Passed on to the network's constructor."""


def build(spec: BackboneSpec, channels: int, size: int, seed: int) -> nn.Module:
    """Make a backbone.

    Args:
        spec: which.
        channels: of the images.
        size: side of the global crops, in pixels.
        seed: of the initial weights.

    Returns:
        A module with ``forward(images, want=Want(), mask=None) -> Encoding``, ``width`` and ``block_widths``.

    Raises:
        SettingError: there is no such network, or it cannot take such images.
    """
    with seeded(seed, "init", 0):
        return _micro(spec, channels, size)


def _micro(spec: BackboneSpec, channels: int, size: int) -> nn.Module:
    kind = MICRO[spec.name]
    given = {"channels": channels, **spec.args}
    if kind is MicroViT:
        given["size"] = size
        given["patch_size"] = spec.patch_size or patch_size(size, 16)
        given |= {"drop_path": spec.drop_path, "mask_token": spec.mask_token}
    known = inspect.signature(kind).parameters
    for word in given:
        if word not in known:
            raise SettingError(f"backbone.args.{word}: {spec.name} has no such argument; {did_you_mean(word, known)}")
    return kind(**given)


def patch_size(size: int, own: int) -> int:
    """The patch size for crops of ``size`` pixels: the network's own, or the largest power of two below that leaves at least 7 cells a side."""
    for p in (own, *(2**k for k in range(own.bit_length() - 1, 0, -1) if 2**k < own)):
        if size % p == 0 and LEAST_CELLS <= size // p <= 32:
            return p
    raise SettingError(
        f"backbone.patch_size must be given for views.size {size}: no power of two up to {own} divides it into {LEAST_CELLS} to 32 cells a side"
    )

"""Teachers: what an encoder says at a place in its network, pooled as one likes."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gnothi.contracts import Block, EncoderError, SettingError, Want
from gnothi.encoders import Encoder, load
from gnothi.encoders.network import PIXELS_AT_ONCE, NetworkEncoder

POOLING = re.compile(r"pooled|final|(max|average):([1-9]\d*)")


class At(Encoder):
    """A block of a network.

    Args:
        encoder: the network.
        block: its number from 0; negative ones count from the end.
        pool: "pooled" (the block's own vector), "final" (the same through the network's last norm), "max:G" or "average:G" (patches to a grid of
            G x G).
    """

    def __init__(self, encoder: Encoder, block: int, pool: str) -> None:
        if not isinstance(encoder, NetworkEncoder):
            raise EncoderError(f"{encoder.name} has no blocks to choose from, it is not a network; leave --layer and --pool out for it")
        many = len(encoder.backbone.block_widths)  # type: ignore[arg-type]
        if not -many <= block < many:
            raise SettingError(f"--layer must lie between {-many} and {many - 1} for {encoder.name}, which has {many} blocks, got {block}")
        self.inner, self.block, self.pool, self.channels = encoder, block % many, pool, encoder.channels
        self.name = f"{encoder.name} at block {self.block}, {pool}"
        self.fingerprint = f"{encoder.fingerprint}-{self.block}-{pool.replace(':', '')}"
        self.dim = self.encode(torch.zeros(1, encoder.channels, encoder.size, encoder.size)).shape[1]

    def prepare(self, images: Tensor) -> Tensor:
        """As the network's own."""
        return self.inner.prepare(images)

    @torch.inference_mode()
    def encode(self, prepared: Tensor) -> Tensor:
        """[B, C, size, size] to [B, dim] float32 on the CPU."""
        want = Want(patches=":" in self.pool, blocks=(self.block,))
        at_once = max(1, PIXELS_AT_ONCE // self.inner.size**2)
        parts = [self.inner.backbone(part.to(self.inner.device), want).blocks[self.block] for part in prepared.split(at_once)]
        return torch.cat([pooled(block, self.pool).float().cpu() for block in parts]).clone()


def pooled(block: Block, pool: str) -> Tensor:
    """A block's vector.

    Args:
        block: with patches where ``pool`` names a grid.
        pool: "pooled", "final", "max:G" or "average:G".

    Returns:
        [B, D], or [B, D x G x G]: all cells of a channel side by side.
    """
    if pool in ("pooled", "final"):
        return block.final if pool == "final" else block.pooled
    how, _, grid = pool.partition(":")
    if block.patches is None:
        raise EncoderError(f"--pool {pool} needs patches, and this block gives none")
    maps = block.patches.mT.unflatten(2, block.grid)  # [B, D, rows, columns]
    return (F.adaptive_max_pool2d if how == "max" else F.adaptive_avg_pool2d)(maps, int(grid)).flatten(1)


def teachers(names: Sequence[str | Encoder], layer: int | None = None, pool: str | None = None, device: str | None = None) -> list[Encoder]:
    """Open teachers.

    Args:
        names: of encoders, or encoders.
        layer: a block of their networks instead of the last output.
        pool: how a block becomes a vector, "pooled" by default; see ``At``.
        device: where they compute.

    Raises:
        SettingError: there is no such block or pooling, or there are no teachers.
        EncoderError: an encoder cannot be opened, or is no network and a block of it is asked for.
    """
    if not names:
        raise SettingError("transfer needs at least one teacher: a run, timm:NAME, hog, bow-sift, features:FILE")
    if pool is not None and not POOLING.fullmatch(pool):
        raise SettingError(f"--pool must be pooled, final, max:G or average:G with a grid of G x G such as max:4, got {pool!r}")
    opened = [load(name, device) if isinstance(name, str) else name for name in names]
    return opened if layer is None and pool is None else [At(e, -1 if layer is None else layer, pool or "pooled") for e in opened]

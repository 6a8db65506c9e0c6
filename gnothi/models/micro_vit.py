"""A small ViT for CPUs. It needs neither timm nor torchvision; its parameters have the names that timm gives them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnothi.contracts import Block, Encoding, SettingError, Want


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)  # [B, heads, N, d]
        mixed: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        return mixed


class _MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        said: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return said


class TransformerBlock(nn.Module):
    """Attention and a two-layer perceptron, each normalised before and added back (arXiv 2010.11929, equations 2 and 3).

    Args:
        width: of the tokens.
        heads: of the attention; divides the width.
        hidden: width inside the perceptron.
        drop_path: probability with which a row skips a branch while training (stochastic depth, arXiv 1603.09382).
    """

    def __init__(self, width: int, heads: int, hidden: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _MLP(width, hidden)

    def _drop(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return x
        kept = 1 - self.drop_path
        return x * x.new_empty(len(x), 1, 1).bernoulli_(kept) / kept

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._drop(self.attn(self.norm1(x)))
        return x + self._drop(self.mlp(self.norm2(x)))


class _PatchEmbed(nn.Module):
    def __init__(self, channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, patch_size)

    def forward(self, images: Tensor) -> Tensor:
        cells: Tensor = self.proj(images)  # [B, D, h, w]
        return cells


class MicroViT(nn.Module):
    """A small vision transformer; ``pooled`` is the class token after the final norm.

    Crops of other sizes than ``size`` get the position embedding resampled (bicubic, antialiased, as timm does it).

    Args:
        channels: of the images.
        size: side of the crops for which the position embedding is stored, in pixels.
        patch_size: side of a patch, in pixels.
        width: of the tokens.
        depth: blocks.
        heads: of the attention; divides the width.
        mlp_ratio: hidden width of the perceptrons over ``width``.
        drop_path: stochastic depth of the last block, growing linearly from 0 at the first.
        mask_token: make a learned token for hidden patches. Without it the state dict has exactly timm's names; with it one more, ``mask_token``.
    """

    def __init__(
        self,
        channels: int = 3,
        size: int = 32,
        patch_size: int = 4,
        width: int = 96,
        depth: int = 6,
        heads: int = 3,
        mlp_ratio: float = 2.0,
        drop_path: float = 0.0,
        mask_token: bool = False,
    ) -> None:
        super().__init__()
        if width % heads:
            raise SettingError(f"backbone.args.width must be a multiple of backbone.args.heads, got {width} and {heads}")
        self.patch_size, self.width, self.block_widths = patch_size, width, (width,) * depth
        self.stored_grid = (cells(size, patch_size), cells(size, patch_size))
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.stored_grid[0] * self.stored_grid[1], width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width)) if mask_token else None
        self.patch_embed = _PatchEmbed(channels, width, patch_size)
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, int(width * mlp_ratio), rate) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.trunc_normal_(m.weight, std=0.02)
                nn.init.zeros_(m.bias)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The position embedding for a grid: [1, 1 + rows * columns, D]."""
        if grid == self.stored_grid:
            return self.pos_embed
        cls, cells = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        cells = cells.mT.unflatten(2, self.stored_grid)
        return torch.cat([cls, F.interpolate(cells, grid, mode="bicubic", antialias=True).flatten(2).mT], 1)

    def forward(self, images: Tensor, want: Want = Want(), mask: Tensor | None = None) -> Encoding:
        """Encode crops.

        Args:
            images: [B, C, H, W] normalised floats; sides are multiples of the patch size.
            want: what the encoding must hold besides the pooled vector.
            mask: [B, N] bool, True where the mask token stands in for a patch.
        """
        grid = (cells(images.shape[2], self.patch_size), cells(images.shape[3], self.patch_size))
        x = self.patch_embed(images).flatten(2).mT  # [B, N, D]
        if mask is not None:
            if self.mask_token is None:
                raise SettingError("backbone.mask_token must be true for masked views, got false")
            x = torch.where(mask[..., None], self.mask_token, x)
        elif self.mask_token is not None and torch.is_grad_enabled():
            x = x + 0 * self.mask_token.sum()  # so that every process has a gradient for it in every step
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.positions(grid)
        blocks = {}
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in want.blocks:
                blocks[i] = Block(x[:, 0], self.norm(x[:, 0]), x[:, 1:] if want.patches else None, grid)
        if not want.patches:
            return Encoding(self.norm(x[:, 0]), None, grid, blocks)
        x = self.norm(x)
        return Encoding(x[:, 0], x[:, 1:], grid, blocks)


def cells(side: int, patch_size: int, setting: str = "views.size") -> int:
    """How many patches stand along a side of a crop; SettingError where they do not fit, which names the setting that the side comes from."""
    if side % patch_size or side < patch_size:
        low = max(side // patch_size, 1) * patch_size
        raise SettingError(f"{setting} must be a multiple of the patch size {patch_size}, got {side}; {low} and {low + patch_size} are nearest")
    return side // patch_size


def patch_side(backbone: nn.Module) -> int:
    """Side of the patches that a network's crops must be made of, in pixels: 1 for a convolutional network."""
    return int(getattr(backbone, "patch_size", None) or getattr(backbone, "multiple", None) or 1)

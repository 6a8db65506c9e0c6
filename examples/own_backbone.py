"""A backbone of your own: any method and auxiliary trains it, and its run is an encoder like any other."""

from __future__ import annotations

from torch import Tensor, nn

import gnothi
from gnothi import evaluate
from gnothi.contracts import Block, Encoding, SettingError, Want
from gnothi.models.backbone import BACKBONES


class Patchwork(nn.Module):
    """Patches of 4 pixels, then blocks of a depthwise and two pointwise convolutions (after ConvMixer, arXiv 2201.09792)."""

    def __init__(self, channels: int = 3, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        self.width, self.block_widths = width, (width,) * depth  # the representation, and what each block says
        self.stem = nn.Conv2d(channels, width, 4, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 5, padding=2, groups=width), nn.GELU(), nn.BatchNorm2d(width),
                nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1), nn.BatchNorm2d(width),
            )
            for _ in range(depth)
        )  # fmt: skip

    def forward(self, images: Tensor, want: Want = Want(), mask: Tensor | None = None) -> Encoding:
        """[B, C, H, W] to an encoding that holds what is wanted: patches, blocks by number."""
        if mask is not None:
            raise SettingError("backbone patchwork has no token for hidden patches")
        x, blocks = self.stem(images), {}
        for number, block in enumerate(self.blocks):
            x = x + block(x)
            if number in want.blocks:
                blocks[number] = said(x, want)
        last = said(x, want)
        return Encoding(last.pooled, last.patches, last.grid, blocks)


def said(x: Tensor, want: Want) -> Block:
    """A map [B, D, h, w] as its mean and, where wanted, its positions [B, h x w, D]."""
    pooled = x.mean((2, 3))
    return Block(pooled, pooled, x.flatten(2).mT if want.patches else None, (x.shape[2], x.shape[3]))


BACKBONES["patchwork"] = Patchwork  # from now on a name like any other

if __name__ == "__main__":
    settings = {
        "backbone": {"name": "patchwork", "args": {"depth": 2}},
        "auxiliary": {"rotation": {}},
        "training": {"epochs": 2},
        "data": {"per_class": 40},
    }
    run = gnothi.train("photos", out="runs/own-backbone", settings=settings)
    print(evaluate.table(evaluate.run("knn", [str(run.folder), f"{run.folder}@untrained"], "photos")))

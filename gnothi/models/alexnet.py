"""AlexNet as torchvision has it, with or without BatchNorm, for images of any number of channels; its parameters have torchvision's names."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from gnothi.contracts import Block, Encoding, SettingError, Want

LEAST = 63
"""Smallest side of an image, in pixels: of a smaller one the last pool leaves nothing."""
LAYERS = ((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
"""Width, kernel, stride and padding of the convolutions; after the first, second and last stands a max-pool."""
POOLED = (0, 1, 4)


class AlexNet(nn.Module):
    """Five convolutions and two wide layers, "one weird trick" (Krizhevsky, arXiv 1404.5997); its third, the classifier, is left out.

    The representation is the second wide layer's; the blocks are the convolutions, each as the next one sees it.

    Args:
        channels: of the images.
        size: side of the crops, in pixels.
        dropout: before the wide layers, while it trains.
    """

    normed = False

    def __init__(self, channels: int = 3, size: int = 224, dropout: float = 0.5) -> None:
        super().__init__()
        if size < LEAST:
            raise SettingError(f"views.size must be at least {LEAST} for alexnet, got {size}; micro-resnet takes any")
        self.width, self.block_widths = 4096, tuple(width for width, *_ in LAYERS)
        layers: list[nn.Module] = []
        self.ends: dict[int, int] = {}
        """Number of the module after which each block ends."""
        for i, (width, kernel, stride, padding) in enumerate(LAYERS):
            layers.append(nn.Conv2d(channels, width, kernel, stride, padding, bias=not self.normed))
            layers += ([nn.BatchNorm2d(width)] if self.normed else []) + [nn.ReLU()] + ([nn.MaxPool2d(3, 2)] if i in POOLED else [])
            self.ends[len(layers) - 1] = i
            channels = width
        self.features = nn.Sequential(*layers)
        wide = [nn.Dropout(dropout), nn.Linear(256 * 36, 4096), nn.ReLU(), nn.Dropout(dropout), nn.Linear(4096, 4096), nn.ReLU()]
        self.classifier = nn.Sequential(*wide)
        for m in self.modules():  # a narrower start than He's leaves it at chance for many epochs
            if isinstance(m, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(m.weight, mode="fan_in", nonlinearity="relu")
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    def forward(self, images: Tensor, want: Want = Want(), mask: Tensor | None = None) -> Encoding:
        """Encode crops.

        Args:
            images: [B, C, H, W] normalised floats.
            want: what the encoding must hold besides the pooled vector.
            mask: must be None: a convolution has no tokens to hide.
        """
        if mask is not None:
            raise SettingError("backbone alexnet has no patch tokens to hide; masked views need a ViT, such as micro-vit")
        x, blocks = images, {}
        for n, layer in enumerate(self.features):
            x = layer(x)
            if self.ends.get(n) in want.blocks:
                blocks[self.ends[n]] = _block(x, want)
        pooled = self.classifier(F.adaptive_avg_pool2d(x, 6).flatten(1))
        return Encoding(pooled, x.flatten(2).mT if want.patches else None, (x.shape[2], x.shape[3]), blocks)


class NormedAlexNet(AlexNet):
    """With BatchNorm after every convolution."""

    normed = True


def _block(x: Tensor, want: Want) -> Block:
    pooled = x.mean((2, 3))
    return Block(pooled, pooled, x.flatten(2).mT if want.patches else None, (x.shape[2], x.shape[3]))

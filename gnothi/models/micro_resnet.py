"""A small ResNet for CPUs. It needs neither timm nor torchvision; its parameters have the names that timm gives them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from gnothi.contracts import Block, Encoding, SettingError, Want


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., arXiv 1512.03385, figure 5 left)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != width:
            self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        # The stride is taken before the 1x1 convolution: the same numbers, and oneDNN's gradient of strided ones is wrong below 16 channels. A pool
        # of one pixel takes it, for a slice's gradient comes in another memory format. BatchNorm needs its input again, so its output may change.
        shortcut = x if self.downsample is None else self.downsample(F.avg_pool2d(x, 1, self.stride))
        x = F.relu_(self.bn1(self.conv1(x)))
        return F.relu_(self.bn2(self.conv2(x)).add_(shortcut))


class MicroResNet(nn.Module):
    """A ResNet of one basic block a stage, with a 3x3 stem of stride 1 and no max-pool.

    The stages stand at strides 1, 2, 4 and 8, so a crop of 32 pixels ends on a 4 x 4 grid. Any crop size works.

    Args:
        channels: of the images.
        widths: of the stages; the last is the width of the representation.
    """

    def __init__(self, channels: int = 3, widths: tuple[int, ...] = (16, 32, 64, 128)) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise SettingError(f"backbone.args.widths must be positive whole numbers, one a stage, got {list(widths)}")
        self.width, self.block_widths = widths[-1], tuple(widths)
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        for i, width in enumerate(widths):
            block = BasicBlock(widths[max(i - 1, 0)], width, 1 if i == 0 else 2)
            self.add_module(f"layer{i + 1}", nn.Sequential(block))
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor, want: Want = Want(), mask: Tensor | None = None) -> Encoding:
        """Encode crops.

        Args:
            images: [B, C, H, W] normalised floats.
            want: what the encoding must hold besides the pooled vector.
            mask: must be None: a convolution has no tokens to hide.
        """
        if mask is not None:
            raise SettingError("backbone micro-resnet has no patch tokens to hide; masked views need a ViT, such as micro-vit")
        x = F.relu_(self.bn1(self.conv1(images)))
        blocks = {}
        for i in range(len(self.block_widths)):
            x = self.get_submodule(f"layer{i + 1}")(x)  # [B, D_i, h, w]
            if i in want.blocks:
                blocks[i] = _block(x, want)
        last = _block(x, want)
        return Encoding(last.pooled, last.patches, last.grid, blocks)


def _block(x: Tensor, want: Want) -> Block:
    pooled = x.mean((2, 3))
    return Block(pooled, pooled, x.flatten(2).mT if want.patches else None, (x.shape[2], x.shape[3]))

"""Any module from Python as a backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gnothi.contracts import Encoding, SettingError, Want


class Adopted(nn.Module):
    """A module that answers with [B, D], or [B, D, h, w] whose mean over positions is then the pooled vector.

    It says nothing of its blocks (``block_widths`` is empty), and of patches only where it answers with a map. A module that can say more
    implements the contract itself; docs/backbones.md has an example.
    """

    def __init__(self, module: nn.Module, width: int) -> None:
        super().__init__()
        self.net = module
        self.width = width
        self.block_widths: tuple[int, ...] = ()

    def forward(self, images: Tensor, want: Want = Want(), mask: Tensor | None = None) -> Encoding:
        """Encode crops.

        Args:
            images: [B, C, H, W] normalised floats.
            want: blocks cannot be had; patches only of a module that answers with a map.
            mask: must be None.
        """
        kind = type(self.net).__name__
        if want.blocks:
            raise SettingError(
                f"blocks were asked of {kind}, an adopted module, which gives only its last output; implement the backbone contract to give them"
            )
        if mask is not None:
            raise SettingError(f"masked views were asked of {kind}, an adopted module, which has no token for hidden patches")
        x = _checked(self.net(images), kind, self.width)
        if x.ndim == 4:
            return Encoding(x.mean((2, 3)), x.flatten(2).mT if want.patches else None, (x.shape[2], x.shape[3]))
        if want.patches:
            raise SettingError(
                f"patches were asked of {kind}, an adopted module that answers with [B, D]; let it answer with [B, D, h, w], before its pooling"
            )
        return Encoding(x, None, (1, 1))


def _checked(x: object, kind: str, width: int | None = None) -> Tensor:
    if not isinstance(x, Tensor) or x.ndim not in (2, 4):
        found = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise SettingError(f"a backbone must answer with [B, D] or [B, D, h, w]; {kind} gave {found}")
    if width is not None and x.shape[1] != width:
        raise SettingError(f"the width of {kind} was given as {width}, but it answers with {x.shape[1]}")
    return x


@torch.no_grad()
def adopt(module: nn.Module, width: int | None = None, *, channels: int = 3, size: int = 32) -> Adopted:
    """Make a backbone of a module.

    Args:
        module: takes [B, C, H, W] floats and gives [B, D] or [B, D, h, w]; leave classifiers off.
        width: D. None: measured with one crop of zeros.
        channels: of that crop.
        size: side of that crop, in pixels.

    Returns:
        A backbone over the module itself, not a copy.

    Raises:
        SettingError: the module answers with something else.
    """
    if width is None:
        was = {m: m.training for m in module.modules()}
        x = module.eval()(torch.zeros(1, channels, size, size))
        for m, training in was.items():
            m.training = training
        width = _checked(x, type(module).__name__).shape[1]
    return Adopted(module, width)

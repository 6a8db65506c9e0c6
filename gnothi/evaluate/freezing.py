"""Which part of a network learns: everything, or what lies above a block."""

from __future__ import annotations

import torch
from torch import nn

from gnothi.contracts import EncoderError, SettingError, Want


def block_number(name: str, backbone: nn.Module, block: int) -> int:
    """A block counted from 0, given from either end.

    Raises:
        EncoderError: the network gives no blocks.
        SettingError: it has no such block.
    """
    many = len(backbone.block_widths)  # type: ignore[arg-type]
    if not many:
        raise EncoderError(f"{name} has no blocks to freeze: its network gives only its last output")
    if not -many <= block < many:
        raise SettingError(f"--freeze must lie between {-many} and {many - 1} for {name}, which has {many} blocks, got {block}")
    return block % many


def below(backbone: nn.Module, block: int, channels: int, size: int) -> frozenset[str]:
    """Names of the parameters that what a block says depends on, found by a backward pass, whatever the network.

    Args:
        backbone: whose.
        block: its number, from 0.
        channels: of the images.
        size: side of a crop, in pixels.
    """
    was = {m: m.training for m in backbone.modules()}
    asked = {name: p.requires_grad for name, p in backbone.named_parameters()}
    backbone.eval().requires_grad_(True)
    names, values = zip(*backbone.named_parameters(), strict=True)
    images = torch.zeros(1, channels, size, size, device=values[0].device)
    said = backbone(images, Want(blocks=(block,))).blocks[block].pooled
    slopes = torch.autograd.grad(said.sum(), values, allow_unused=True)
    for module, training in was.items():
        module.training = training
    for name, p in backbone.named_parameters():
        p.requires_grad_(asked[name])
    return frozenset(name for name, slope in zip(names, slopes, strict=True) if slope is not None)


def freeze(backbone: nn.Module, frozen: frozenset[str]) -> None:
    """Let everything learn but these parameters; a module of which nothing learns stays as in evaluation: BatchNorm's statistics, dropout."""
    for name, p in backbone.named_parameters():
        p.requires_grad_(name not in frozen)
    backbone.train()
    for module in backbone.modules():
        own = list(module.parameters())
        if own and not any(p.requires_grad for p in own):
            module.eval()


@torch.no_grad()
def renew(backbone: nn.Module, fresh: nn.Module, frozen: frozenset[str]) -> None:
    """Take the weights and statistics of everything that is not frozen from another network of the same architecture."""
    own, parameters = backbone.state_dict(), dict(backbone.named_parameters())
    still = {name.rpartition(".")[0] for name in frozen}  # modules; their statistics are frozen with them
    for name, value in fresh.state_dict().items():
        if not (name in frozen or (name not in parameters and name.rpartition(".")[0] in still)):
            own[name].copy_(value)

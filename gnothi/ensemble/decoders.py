"""From a code to every member's features: small networks, and how far they are off."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Decoders(nn.Module):
    """A network a member; the first layers of all are one matrix.

    Args:
        width: r, of a code.
        members: D_j of each member.
        hidden: width of the hidden layers.
        layers: how many hidden layers; 0 makes linear maps.
        bias: whether layers have one.
    """

    def __init__(self, width: int, members: Sequence[int], hidden: int, layers: int, bias: bool) -> None:
        super().__init__()
        self.members, self.hidden, self.layers = list(members), hidden, layers
        self.first = nn.Linear(width, hidden * len(members) if layers else sum(members), bias=bias)
        self.tails = nn.ModuleList()
        for d in members if layers else ():
            deeper = [part for _ in range(layers - 1) for part in (nn.Linear(hidden, hidden, bias=bias), nn.ReLU())]
            self.tails.append(nn.Sequential(*deeper, nn.Linear(hidden, d, bias=bias)))

    def forward(self, codes: Tensor) -> list[Tensor]:
        """[B, r] to [B, D_j] a member."""
        if not self.layers:
            return list(self.first(codes).split(self.members, 1))
        parts = F.relu(self.first(codes)).split(self.hidden, 1)
        return [tail(x) for tail, x in zip(self.tails, parts, strict=True)]


def cosine(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - cosine, [B, D] twice to [B]: half the squared distance of the two at unit length."""
    return 1 - F.cosine_similarity(predicted, target, dim=1)


def squared(predicted: Tensor, target: Tensor) -> Tensor:
    """Half the squared distance, [B]."""
    return (predicted - target).square().sum(1) / 2


def mixed(predicted: Tensor, target: Tensor) -> Tensor:
    """0.9 of the cosine loss and 0.1 of smooth-L1, meaned over numbers, as Theia (CoRL 2024) weighs them, [B]."""
    return 0.9 * cosine(predicted, target) + 0.1 * F.smooth_l1_loss(predicted, target, reduction="none").mean(1)


LOSSES = {"cosine": cosine, "squared": squared, "cosine+smooth-l1": mixed}


def by_member(loss: str, predicted: Sequence[Tensor], targets: Sequence[Tensor | None]) -> Tensor:
    """Losses [B, m]; a missing member's are 0."""
    zero = torch.zeros_like(predicted[0][:, 0])
    return torch.stack([zero if z is None else LOSSES[loss](p, z) for p, z in zip(predicted, targets, strict=True)], dim=1)


def dropped(losses: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Weights [B, m] that drop members: a row keeps the one that it explains worst, each other one with a probability, and they add up to m.

    The rule is UNIC's (ECCV 2024).
    """
    if probability == 0 or losses.shape[1] == 1:
        return torch.ones_like(losses)
    kept = (torch.rand(losses.shape, generator=generator) >= probability).to(losses.dtype)
    kept.scatter_(1, losses.detach().argmax(1, keepdim=True), 1.0)
    return kept * (losses.shape[1] / kept.sum(1, keepdim=True))

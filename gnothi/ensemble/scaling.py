"""How the features of a member become what a descent has to predict: centred, divided by deviations, or by PHI-S."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gnothi.ensemble.members import eigen

KINDS = ("none", "centre", "dimension", "phi-s")


@dataclass(frozen=True)
class Scaling:
    """Features at unit length, less a mean, times a scale or a matrix."""

    mean: Tensor
    """[D]."""
    scale: Tensor
    """[D] factors or [D, D] matrix."""

    def __call__(self, x: Tensor) -> Tensor:
        """[N, D] features of any scale to [N, D]."""
        centred = F.normalize(x, dim=1) - self.mean.to(x.dtype)
        scale = self.scale.to(x.dtype)
        return centred * scale if scale.ndim == 1 else centred @ scale


def scaling(kind: str, mean: Tensor, covariance: Tensor) -> Scaling:
    """Fit one.

    Args:
        kind: "none"; "centre"; "dimension", every number to mean 0 and variance 1; or "phi-s" (Ranzinger et al. 2024, arXiv 2410.01680): centred,
            turned so that every number has the same variance, and divided by one deviation, so that distances keep their proportions.
        mean: [D] of the features at unit length.
        covariance: [D, D] of them.
    """
    d = len(mean)
    if kind in ("none", "centre"):
        return Scaling(mean if kind == "centre" else torch.zeros_like(mean), torch.ones(d, dtype=mean.dtype))
    mean_variance = covariance.diagonal().mean()
    if kind == "dimension":
        return Scaling(mean, covariance.diagonal().clamp(min=1e-6 * mean_variance) ** -0.5)
    values, vectors = eigen(covariance)
    return Scaling(mean, vectors @ evened(values).T / mean_variance.sqrt())


def evened(values: Tensor) -> Tensor:
    """A rotation H [D, D] for which H diag(values) H' has equal numbers on its diagonal.

    Hadamard's matrix where D is a power of two, as in PHI-S; for other widths plane rotations, each of which sets one number right.
    """
    d = len(values)
    if d & (d - 1) == 0:
        from scipy.linalg import hadamard

        signs: Tensor = torch.from_numpy(hadamard(d))
        return signs.to(values.dtype) / math.sqrt(d)
    turn, matrix, open_ = torch.eye(d, dtype=values.dtype), torch.diag(values), torch.ones(d, dtype=torch.bool)
    goal = values.mean()
    for _ in range(d - 1):
        diagonal = matrix.diagonal()
        low = int(torch.where(open_, diagonal, torch.inf).argmin())
        high = int(torch.where(open_, diagonal, -torch.inf).argmax())
        if low == high:
            break
        pair = torch.tensor([low, high])
        rotation = _plane(matrix[pair][:, pair], goal)
        matrix[pair] = rotation @ matrix[pair]
        matrix[:, pair] = matrix[:, pair] @ rotation.T
        turn[pair] = rotation @ turn[pair]
        open_[low] = False
    return turn


def _plane(block: Tensor, goal: Tensor) -> Tensor:
    """The rotation [2, 2] after which the first diagonal number of a symmetric block is the goal, which lies between the two."""
    a, b, c = block[0, 0], block[0, 1], block[1, 1]
    # (1 - s) a + s c + 2 b sqrt(s (1 - s)) = goal with t = tan: (c - goal) t^2 + 2 b t + (a - goal) = 0
    first, last = c - goal, a - goal
    if first <= 0:
        return torch.eye(2, dtype=block.dtype)
    t = (-b + (b * b - first * last).clamp(min=0).sqrt()) / first
    cos = 1 / (1 + t * t).sqrt()
    return torch.stack([torch.stack([cos, t * cos]), torch.stack([-t * cos, cos])])

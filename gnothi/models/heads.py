"""Projectors, predictors and prototypes: one class, its widths are its arguments."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnothi.contracts import Said

Norm = Literal["batch", "none"]


def mlp(widths: list[int], norm: Norm, *, last_norm: bool = False, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with norm and activation between them.

    Args:
        widths: of the input, of each hidden layer and of the output.
        norm: "batch" puts a BatchNorm before each activation.
        last_norm: a BatchNorm without scale and shift after the last layer too, where ``norm`` is "batch".
        activation: between layers.
    """
    layers: list[nn.Module] = []
    last = len(widths) - 2
    for i, (a, b) in enumerate(pairwise(widths)):
        normed = norm == "batch" and (i < last or last_norm)
        layers.append(nn.Linear(a, b, bias=not normed))
        if normed:
            layers.append(nn.BatchNorm1d(b, affine=i < last))
        if i < last:
            layers.append(activation())
    return nn.Sequential(*layers)


class Head(nn.Module):
    """A projector, then a predictor, or unit length and prototypes, or nothing.

    Args:
        width: of the features.
        hidden: width of the projector's hidden layers.
        out: width of the projection.
        layers: linear layers of the projector.
        norm: of projector and predictor.
        last_norm: norm after the projector's last layer too.
        predictor: hidden width of the predictor; 0 for none.
        prototypes: how many; 0 for none.
        weight_norm: prototypes are scaled to unit length in every forward (DINO), not after every step (SwAV).
        activation: of the projector.
    """

    def __init__(
        self,
        width: int,
        *,
        hidden: int,
        out: int,
        layers: int = 2,
        norm: Norm = "batch",
        last_norm: bool = False,
        predictor: int = 0,
        prototypes: int = 0,
        weight_norm: bool = False,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.projector = mlp([width, *[hidden] * (layers - 1), out], norm, last_norm=last_norm, activation=activation)
        self.predictor = mlp([out, predictor, out], norm) if predictor else None
        self.last = nn.Linear(out, prototypes, bias=False) if prototypes else None
        self.weight_norm = weight_norm
        self.tidy()

    @torch.no_grad()
    def tidy(self) -> None:
        """Bring prototypes back to unit length: after an optimiser's step, and not while they are frozen (twice is not once, in the last bits)."""
        if self.last is not None and not self.weight_norm:
            self.last.weight.copy_(F.normalize(self.last.weight, dim=-1))

    def predict(self, projection: Tensor) -> Tensor:
        """[B, P] -> [B, Q]: what the predictor makes of the projection, where there is one, and its scores where there are prototypes."""
        said: Tensor = projection if self.predictor is None else self.predictor(projection)
        return said if self.last is None else F.linear(said, self.prototypes())

    def prototypes(self) -> Tensor:
        """[K, P], as they are compared with; only where there are any."""
        weight: Tensor = self.last.weight  # type: ignore[union-attr]
        return F.normalize(weight, dim=-1) if self.weight_norm else weight

    def project(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, P], of unit length where there are prototypes."""
        projection = self.projector(features)
        return projection if self.last is None else F.normalize(projection, dim=-1)

    def forward(self, features: Tensor) -> Said:
        """[B, D] -> projection [B, P] and prediction [B, Q]."""
        projection = self.project(features)
        return Said(projection, self.predict(projection))

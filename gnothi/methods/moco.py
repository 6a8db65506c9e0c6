"""MoCo v3: queries of the network find the teacher's keys in the batch (Chen, Xie and He 2021, arXiv 2104.02057)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from gnothi.contracts import Said, Step
from gnothi.distributed import gather, rank, world
from gnothi.losses import contrast_rows, weighted_mean
from gnothi.methods.method import Method, Space, TeacherSpec
from gnothi.models.heads import Head


class MoCoSpec(TeacherSpec):
    """Settings of MoCo v3."""

    name: Literal["moco"] = "moco"
    temperature: float = Field(default=0.2, gt=0)
    """Softmax temperature of the contrast."""
    decoupled: bool = False
    """A query's key is not among the keys it must stand out from (DCL, arXiv 2110.06848): for small batches, where a rule sets it."""
    predictor: int = Field(default=512, gt=0)
    """Width of the predictor's hidden layer."""
    joint_views: bool = False
    """The paper runs each view on its own."""


class MoCoSpace(Space):
    """Queries and keys on the unit sphere; no queue: the other images of the batch are the negatives (Algorithm 1)."""

    predictor_alone = True
    spec: MoCoSpec

    def fresh_head(self, width: int) -> Head:
        """Projector with a norm after its last layer, and a predictor."""
        s = self.spec
        return Head(width, hidden=s.hidden, out=s.out, layers=s.layers, norm=s.norm, last_norm=True, predictor=s.predictor)

    def targets(self, said: list[Said], step: Step) -> Tensor:
        """[world x G x B, P] of unit length, by process, then crop."""
        return gather(F.normalize(super().targets(said, step), dim=-1))

    def match(self, predictions: Tensor, targets: Tensor, *, index: Tensor | None = None, weight: Tensor | None = None, step: Step) -> Tensor:
        """2 x temperature x cross-entropy of finding the key (Algorithm 1)."""
        first = rank() * (len(targets) // world())
        index = torch.arange(len(predictions), device=predictions.device) if index is None else index
        rows = contrast_rows(predictions, targets, index + first, self.spec.temperature, decoupled=self.spec.decoupled)
        return 2 * self.spec.temperature * weighted_mean(rows, weight)

    def agree(self, said: list[Said], targets: Tensor, step: Step) -> Tensor:
        """Sum of the directions; the candidates of a direction are the keys of one crop."""
        n = len(said[0].projection)
        crops = targets.view(world(), -1, n, targets.shape[-1]).transpose(0, 1).flatten(1, 2)  # [G, world x B, P]
        pairs = [(v, g) for g in range(len(crops)) for v in range(len(said)) if v != g]
        return 2 * torch.stack([self.match(said[v].prediction, crops[g], step=step) for v, g in pairs]).mean()


class MoCo(Method):
    """Two views, projector, predictor, a teacher that follows, InfoNCE in both directions."""

    name, space_type, accumulates = "moco", MoCoSpace, False

"""SimCLR: every view finds its partner among all views of the batch (Chen et al. 2020, arXiv 2002.05709)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from gnothi.contracts import Said, Step
from gnothi.distributed import gather, rank, world
from gnothi.losses import contrast_rows, weighted_mean
from gnothi.methods.method import Method, MethodSpec, Space


class SimCLRSpec(MethodSpec):
    """Settings of SimCLR."""

    name: Literal["simclr"] = "simclr"
    temperature: float = Field(default=0.2, gt=0)
    """Softmax temperature of the contrast."""
    decoupled: bool = False
    """A view's partner is not among the candidates it must stand out from (DCL, arXiv 2110.06848): for small batches, where a rule sets it."""


class SimCLRSpace(Space):
    """Projections on the unit sphere; the candidates are the views of all processes (eq. 1)."""

    both_learn = True
    spec: SimCLRSpec

    def targets(self, said: list[Said], step: Step) -> Tensor:
        """[world x G x B, P] of unit length, by process, then crop."""
        return gather(F.normalize(super().targets(said, step), dim=-1))

    def match(
        self,
        predictions: Tensor,
        targets: Tensor,
        *,
        index: Tensor | None = None,
        weight: Tensor | None = None,
        step: Step,
        exclude: Tensor | None = None,
    ) -> Tensor:
        """As ``Space.match``; ``exclude`` [N] is the local row that is no candidate, a view's own."""
        first = rank() * (len(targets) // world())
        index = torch.arange(len(predictions), device=predictions.device) if index is None else index
        exclude = None if exclude is None else exclude + first
        rows = contrast_rows(predictions, targets, index + first, self.spec.temperature, exclude, decoupled=self.spec.decoupled)
        return weighted_mean(rows, weight)

    def agree(self, said: list[Said], targets: Tensor, step: Step, mask: bool = True) -> Tensor:
        """Both views [a, b] against all views but themselves (where ``mask``); a local crop against both, but for its image's other one."""
        rows = torch.cat([s.prediction for s in said[:2]])  # [2B, P]
        own = torch.arange(len(rows), device=rows.device)
        partner = own.roll(-len(said[0].projection))
        terms = [self.match(rows, targets, index=partner, exclude=own if mask else None, step=step)]
        terms += [self.match(s.prediction.repeat(2, 1), targets, index=own, exclude=partner, step=step) for s in said[2:]]
        return torch.stack(terms).mean()


class SimCLR(Method):
    """Two views, a projector, NT-Xent."""

    name, space_type, accumulates = "simclr", SimCLRSpace, False

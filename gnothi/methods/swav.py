"""SwAV: predict the other view's assignment to prototypes (Caron et al. 2020, arXiv 2006.09882)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from gnothi.contracts import Carry, Said, Step
from gnothi.distributed import gather, rank, world
from gnothi.losses import assignment_rows, sinkhorn, weighted_mean
from gnothi.methods.method import Method, MethodSpec, Space, pick
from gnothi.models.heads import Head


class SwAVSpec(MethodSpec):
    """Settings of SwAV."""

    name: Literal["swav"] = "swav"
    prototypes: int = Field(default=512, gt=1)
    """How many prototypes."""
    temperature: float = Field(default=0.1, gt=0)
    """Softmax temperature of the predictions."""
    epsilon: float = Field(default=0.05, gt=0)
    """Sharpness of the Sinkhorn assignments; smaller is sharper."""
    iterations: int = Field(default=3, gt=0, le=1000)
    """Rounds of Sinkhorn."""
    queue: int = Field(default=0, ge=0)
    """Earlier projections, a crop, that take part in the assignment; for batches much smaller than the number of prototypes, in long runs."""
    queue_start: float = Field(default=0.15, ge=0, le=1)
    """Part of training after which the queue is used, once it is full."""
    frozen_until: float = Field(default=0.01, ge=0, le=1)
    """Part of training in which prototypes do not move."""


class SwAVSpace(Space):
    """Projections and prototypes on the unit sphere; targets are equal-sized soft assignments (eq. 3)."""

    spec: SwAVSpec

    def __init__(self, width: int, spec: SwAVSpec) -> None:
        super().__init__(width, spec)
        self.register_buffer("queue", torch.zeros(2, spec.queue, spec.out))
        self.queue: Tensor

    def fresh_head(self, width: int) -> Head:
        """Projector, unit length, prototypes."""
        s = self.spec
        return Head(width, hidden=s.hidden, out=s.out, layers=s.layers, norm=s.norm, prototypes=s.prototypes)

    @torch.no_grad()
    def targets(self, said: list[Said], step: Step) -> Tensor:
        """[G x B, K] assignments of this process's rows, computed with all processes' rows and the queue."""
        parts = []
        for crop, s in enumerate(said):
            scores = gather(s.prediction.detach())
            n = len(scores) // world()
            # Zeros are no projections, and the oldest place is filled last; the rows of this call say nothing of it: health asks with a sample.
            if self.spec.queue and step.progress >= self.spec.queue_start and bool(self.queue[crop, -1].any()):
                scores = torch.cat([scores, self.head.predict(self.queue[crop])])
            parts.append(sinkhorn(scores, self.spec.epsilon, self.spec.iterations)[rank() * n : (rank() + 1) * n])
        return torch.cat(parts)

    def match(self, predictions: Tensor, targets: Tensor, *, index: Tensor | None = None, weight: Tensor | None = None, step: Step) -> Tensor:
        """Cross-entropy of assignments (eq. 2)."""
        return weighted_mean(assignment_rows(predictions, pick(targets, index), self.spec.temperature), weight)

    def frozen(self, step: Step) -> tuple[str, ...]:
        """The prototypes, at first."""
        return ("*.last.weight",) if step.progress < self.spec.frozen_until else ()

    def keep(self, answered: list[Said]) -> Carry:
        """Projections for the queue: [B, G, P]."""
        return Carry(rows={"projections": torch.stack([s.projection for s in answered], 1)}) if self.spec.queue else Carry()

    def settle(self, carry: Carry, step: Step) -> None:
        """Put the newest projections first."""
        if self.spec.queue:
            newest = carry.rows["projections"].transpose(0, 1)
            self.queue.copy_(torch.cat([newest, self.queue], dim=1)[:, : self.spec.queue])


class SwAV(Method):
    """Two or more crops, projector, prototypes, Sinkhorn; no negatives, no teacher."""

    name, space_type, accumulates = "swav", SwAVSpace, False

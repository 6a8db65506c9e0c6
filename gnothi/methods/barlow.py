"""Barlow Twins: the views' features correlate with themselves and with nothing else (Zbontar et al. 2021, arXiv 2103.03230)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from gnothi.contracts import Step
from gnothi.distributed import gather
from gnothi.losses import barlow
from gnothi.methods.method import Method, MethodSpec, Space, pick


class BarlowSpec(MethodSpec):
    """Settings of Barlow Twins."""

    name: Literal["barlow"] = "barlow"
    out: int = Field(default=512, gt=1)
    """Width of the projection; wide is good here (section 4)."""
    trade_off: float = Field(default=0.005, ge=0)
    """Weight of the off-diagonal part."""
    joint_views: bool = False
    """The paper runs each view on its own."""


class BarlowSpace(Space):
    """The cross-correlation matrix of two crops over the batch of all processes."""

    both_learn = symmetric = True
    spec: BarlowSpec

    def match(self, predictions: Tensor, targets: Tensor, *, index: Tensor | None = None, weight: Tensor | None = None, step: Step) -> Tensor:
        """Distance of the cross-correlation from the identity (eq. 1)."""
        a, b = gather(predictions), gather(pick(targets, index))
        return barlow(a, b, self.spec.trade_off, weight=None if weight is None else gather(weight))


class Barlow(Method):
    """Two views, a wide projector, decorrelated features."""

    name, space_type, accumulates = "barlow", BarlowSpace, False

"""VICReg: views agree, features vary and do not covary (Bardes, Ponce and LeCun 2021, arXiv 2105.04906)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from gnothi.contracts import Step
from gnothi.distributed import gather
from gnothi.losses import vicreg
from gnothi.methods.method import Method, MethodSpec, Space, pick


class VICRegSpec(MethodSpec):
    """Settings of VICReg."""

    name: Literal["vicreg"] = "vicreg"
    out: int = Field(default=512, gt=1)
    """Width of the projection; wide is good here."""
    layers: int = Field(default=3, gt=0, le=64)
    """Linear layers of the projector."""
    invariance: float = Field(default=25.0, ge=0)
    """Weight of the distance between views."""
    variance: float = Field(default=25.0, ge=0)
    """Weight of the hinge on each feature's deviation."""
    covariance: float = Field(default=1.0, ge=0)
    """Weight of the squared covariances."""
    joint_views: bool = False
    """The paper runs each view on its own."""


class VICRegSpace(Space):
    """Statistics of two crops over the batch of all processes."""

    both_learn = symmetric = True
    spec: VICRegSpec

    def match(self, predictions: Tensor, targets: Tensor, *, index: Tensor | None = None, weight: Tensor | None = None, step: Step) -> Tensor:
        """The three terms (eq. 6)."""
        a, b, s = gather(predictions), gather(pick(targets, index)), self.spec
        return vicreg(a, b, s.invariance, s.variance, s.covariance, weight=None if weight is None else gather(weight))


class VICReg(Method):
    """Two views, a wide projector, three terms."""

    name, space_type, accumulates = "vicreg", VICRegSpace, False

"""BYOL: predict the teacher's projection of the other view (Grill et al. 2020, arXiv 2006.07733)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from gnothi.contracts import Said, Step
from gnothi.losses import cosine_rows, weighted_mean
from gnothi.methods.method import Method, Space, TeacherSpec, pick
from gnothi.models.heads import Head


class BYOLSpec(TeacherSpec):
    """Settings of BYOL."""

    name: Literal["byol"] = "byol"
    predictor: int = Field(default=512, ge=0)
    """Width of the predictor's hidden layer; 0 takes the predictor away (it collapses)."""
    joint_views: bool = False
    """The paper runs each view on its own."""


class BYOLSpace(Space):
    """Predictions and the teacher's projections on the unit sphere."""

    predictor_alone = True
    spec: BYOLSpec

    def fresh_head(self, width: int) -> Head:
        """Projector and predictor."""
        s = self.spec
        return Head(width, hidden=s.hidden, out=s.out, layers=s.layers, norm=s.norm, predictor=s.predictor)

    def match(self, predictions: Tensor, targets: Tensor, *, index: Tensor | None = None, weight: Tensor | None = None, step: Step) -> Tensor:
        """Squared distance on the unit sphere, 2 - 2 x cosine (eq. 2)."""
        return weighted_mean(2 - 2 * cosine_rows(predictions, pick(targets, index)), weight)

    def agree(self, said: list[Said], targets: Tensor, step: Step) -> Tensor:
        """Sum of both directions (section 3.1)."""
        return 2 * super().agree(said, targets, step)


class BYOL(Method):
    """Two views, projector, predictor, a teacher that follows; no negatives."""

    name, space_type = "byol", BYOLSpace

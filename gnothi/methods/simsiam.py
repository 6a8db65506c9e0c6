"""SimSiam: predict the other view's projection, which takes no gradient (Chen and He 2020, arXiv 2011.10566)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from gnothi.contracts import Carry, Outputs, Said, Step, Views
from gnothi.losses import cosine_rows, weighted_mean
from gnothi.methods.method import Group, Method, MethodSpec, Space, pick
from gnothi.models.heads import Head


class SimSiamSpec(MethodSpec):
    """Settings of SimSiam."""

    name: Literal["simsiam"] = "simsiam"
    predictor: int = Field(default=128, gt=0)
    """Width of the predictor's hidden layer: a bottleneck, a quarter of ``out`` in the paper."""
    stop_gradient: bool = True
    """False lets the targets learn too (it collapses: section 4.1)."""
    constant_predictor_rate: bool = True
    """The predictor's learning rate does not decay (section 4.2)."""
    joint_views: bool = False
    """The paper runs each view on its own."""


class SimSiamSpace(Space):
    """Predictions and detached projections on the unit sphere."""

    predictor_alone = True
    spec: SimSiamSpec

    def fresh_head(self, width: int) -> Head:
        """Projector with a norm after its last layer, and a bottleneck predictor (section 3)."""
        s = self.spec
        return Head(width, hidden=s.hidden, out=s.out, layers=s.layers, norm=s.norm, last_norm=True, predictor=s.predictor)

    def match(self, predictions: Tensor, targets: Tensor, *, index: Tensor | None = None, weight: Tensor | None = None, step: Step) -> Tensor:
        """Negative cosine (eq. 1); the mean over both directions is eq. 2."""
        return weighted_mean(-cosine_rows(predictions, pick(targets, index)), weight)


class SimSiam(Method):
    """Two views, projector, predictor, a stop-gradient; no teacher, no negatives."""

    name, space_type = "simsiam", SimSiamSpace
    spec: SimSiamSpec

    def groups(self) -> tuple[Group, ...]:
        """The predictor's rate is constant."""
        return (Group("*.predictor.*", schedule="constant"),) if self.spec.constant_predictor_rate else ()

    def loss(self, views: Views, outputs: Outputs, step: Step) -> tuple[dict[str, Tensor], Carry]:
        """As ``Method.loss``, or without the stop-gradient where the settings ask for that."""
        if self.spec.stop_gradient:
            return super().loss(views, outputs, step)
        said: list[Said] = [b.said for b in outputs.online]
        return {self.name: self.space.agree(said, self.space.targets(said[: views.n_global], step), step)}, Carry()

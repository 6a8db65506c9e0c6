"""A method of your own: alignment and uniformity on the hypersphere (Wang and Isola 2020, arXiv 2005.10242), row by row."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

import gnothi
from gnothi import evaluate
from gnothi.contracts import Said, Step
from gnothi.losses import weighted_mean
from gnothi.methods import METHODS, Method, MethodSpec, Space
from gnothi.methods.method import pick


class UniformSpec(MethodSpec):
    """Settings; method.uniformity=2 then works."""

    name: Literal["uniform"] = "uniform"
    uniformity: float = Field(default=1.0, ge=0)  # weight beside alignment
    sharpness: float = Field(default=2.0, gt=0)  # the t of exp(-t x squared distance)


class UniformSpace(Space):
    """Projections on the unit sphere; both views learn."""

    both_learn = True
    spec: UniformSpec

    def targets(self, said: list[Said], step: Step) -> Tensor:
        """[views x B, P] of unit length."""
        return F.normalize(super().targets(said, step), dim=-1)

    def match(self, predictions: Tensor, targets: Tensor, *, index: Tensor | None = None, weight: Tensor | None = None, step: Step) -> Tensor:
        """Squared distance to the partner, and how crowded it is around each prediction among those of this process."""
        rows = F.normalize(predictions, dim=-1)
        alignment = (rows - pick(targets, index)).square().sum(-1)
        distances = (2 - 2 * rows @ rows.T).fill_diagonal_(math.inf)  # exp(-inf) is 0: a row does not crowd itself
        crowded = torch.logsumexp(-self.spec.sharpness * distances, 1) - math.log(max(len(rows) - 1, 1))
        return weighted_mean(alignment + self.spec.uniformity * crowded, weight)


class Uniform(Method):
    """Two views, a projector, no teacher, no local crops; the batch is part of the loss."""

    name, space_type, multi_crop, accumulates = "uniform", UniformSpace, False, False


METHODS["uniform"] = (UniformSpec, Uniform)  # from now on a name like any other

if __name__ == "__main__":
    settings = {"method": {"name": "uniform"}, "auxiliary": {"rotation": {}}, "training": {"epochs": 2}, "data": {"per_class": 40}}
    run = gnothi.train("photos", out="runs/own-method", settings=settings)
    print(evaluate.table(evaluate.run("knn", [str(run.folder), f"{run.folder}@untrained"], "photos")))

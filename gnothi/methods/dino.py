"""DINO: predict a centred and sharpened teacher's distribution of the other crops (Caron et al. 2021, arXiv 2104.14294)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from gnothi.contracts import Carry, Said, SettingError, Step
from gnothi.distributed import gather, rank, world
from gnothi.losses import assignment_rows, sinkhorn, weighted_mean
from gnothi.methods.method import Method, Space, TeacherSpec, pick
from gnothi.models.heads import Head
from gnothi.schedules import linear

FIRST_TEMPERATURE = 0.04
"""Of the teacher, unless it ends lower."""
BLUNT = "a blunter target teaches nothing"


class DINOSpec(TeacherSpec):
    """Settings of DINO."""

    name: Literal["dino"] = "dino"
    out: int = Field(default=256, gt=1)
    """Width of the bottleneck before the prototypes."""
    layers: int = Field(default=3, gt=0, le=64)
    """Linear layers of the projector."""
    prototypes: int = Field(default=1024, gt=1)
    """Outputs of the head; 65,536 on ImageNet, about a twentieth of the images at least."""
    student_temperature: float = Field(default=0.1, gt=0)
    """Softmax temperature of the learner."""
    teacher_temperature: float = Field(default=0.04, gt=0)
    """Softmax temperature of the teacher after its warm-up; lower cures a collapse to uniform."""
    teacher_temperature_start: float | None = Field(default=None, gt=0)
    """And at the first step. None: 0.04, or the temperature after the warm-up where that is lower."""
    temperature_warm_up: float = Field(default=0.3, ge=0, le=1)
    """Part of training in which the teacher's temperature moves, in a line."""
    centring: Literal["ema", "sinkhorn", "none"] = "ema"
    """What keeps one output from winning; "sinkhorn" needs the whole batch at once, so it cannot accumulate; "none" collapses."""
    centre_momentum: float = Field(default=0.9, ge=0, le=1)
    """How much of itself the centre keeps."""
    frozen_until: float = Field(default=0.05, ge=0, le=1)
    """Part of training in which the last layer does not move."""

    @model_validator(mode="after")
    def _sharper_teacher(self) -> DINOSpec:
        for name, value in (("teacher_temperature", self.teacher_temperature), ("teacher_temperature_start", self.first_temperature)):
            if value >= self.student_temperature:
                raise SettingError(f"method.{name} must be below method.student_temperature ({self.student_temperature}), got {value}: {BLUNT}")
        return self

    @property
    def first_temperature(self) -> float:
        """Of the teacher, at the first step."""
        return min(FIRST_TEMPERATURE, self.teacher_temperature) if self.teacher_temperature_start is None else self.teacher_temperature_start


class DINOSpace(Space):
    """Distributions over prototypes; the teacher's are centred and sharpened (section 3.1)."""

    spec: DINOSpec
    slow: Head

    def __init__(self, width: int, spec: DINOSpec) -> None:
        super().__init__(width, spec)
        self.register_buffer("centre", torch.zeros(spec.prototypes))
        self.centre: Tensor

    def fresh_head(self, width: int) -> Head:
        """Projector with GELU, unit length, weight-normalised prototypes."""
        s = self.spec
        return Head(width, hidden=s.hidden, out=s.out, layers=s.layers, norm=s.norm, prototypes=s.prototypes, weight_norm=True, activation=nn.GELU)

    def temperature(self, step: Step) -> float:
        """The teacher's, in this step."""
        s = self.spec
        return linear(step.progress, s.first_temperature, s.teacher_temperature, s.temperature_warm_up)

    @torch.no_grad()
    def targets(self, said: list[Said], step: Step) -> Tensor:
        """[G x B, K] distributions, by the centre of the steps before."""
        logits = torch.cat([s.prediction for s in said])
        if self.spec.centring == "sinkhorn":
            joint = gather(logits)
            return sinkhorn(joint, self.temperature(step), 3)[rank() * (len(joint) // world()) :][: len(logits)]
        return ((logits - self.centre) / self.temperature(step)).softmax(-1)

    def match(self, predictions: Tensor, targets: Tensor, *, index: Tensor | None = None, weight: Tensor | None = None, step: Step) -> Tensor:
        """Cross-entropy of distributions (eq. 2)."""
        return weighted_mean(assignment_rows(predictions, pick(targets, index), self.spec.student_temperature), weight)

    def frozen(self, step: Step) -> tuple[str, ...]:
        """The last layer, at first."""
        return ("*.last.weight",) if step.progress < self.spec.frozen_until else ()

    def keep(self, answered: list[Said]) -> Carry:
        """Sum of the teacher's logits over crops and images, for the centre."""
        logits = torch.cat([s.prediction for s in answered])
        return Carry(sums={"logits": logits.sum(0), "count": logits.new_tensor(float(len(logits)))})

    def settle(self, carry: Carry, step: Step) -> None:
        """Move the slow twin, and the centre (eq. 4)."""
        super().settle(carry, step)
        if self.spec.centring == "ema":
            self.centre.lerp_(carry.sums["logits"] / carry.sums["count"], 1 - self.spec.centre_momentum)


class DINO(Method):
    """Global and local crops, a teacher that follows, centring and sharpening."""

    name, space_type = "dino", DINOSpace

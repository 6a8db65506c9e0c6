"""Rotation beside any method: which quarter turn was applied to a view (EffSSL, Addepalli et al. 2022, arXiv 2210.09866).

The views are turned after all augmentation, an angle of its own for each image and view, and go through the online network once more, a batch a view.
The method never sees them: no teacher, queue or assignment meets a turned image.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from gnothi.auxiliary.auxiliary import Auxiliary, AuxiliarySpec
from gnothi.contracts import Carry, Outputs, SettingError, Step, Views
from gnothi.methods import Method
from gnothi.models.teacher import Statistics, batch_statistics
from gnothi.views.batches import ViewsSpec

VIEWS = 2
"""Global views that are turned."""


class RotationSpec(AuxiliarySpec):
    """Settings of rotation."""

    weight: float = Field(default=0.1, ge=0)
    """Weight of the cross-entropy, summed over both views; 0.1 in the authors' code for SwAV."""
    angles: tuple[int, ...] = (0, 90, 180, 270)
    """Degrees anticlockwise to tell apart: different multiples of 90."""
    on: Literal["backbone", "projector"] = "backbone"
    """What the head reads: the representation, or the method's projection of it."""
    hidden: int | None = Field(default=None, gt=0)
    """Width of the head's hidden layer. None: that of what it reads."""
    norm: Literal["batch", "layer"] = "batch"
    """Normalisation in the head."""
    statistics: Statistics = "keep"
    """"keep" leaves BatchNorm's running statistics, which evaluation uses, to upright images; "update" lets turned ones supply their share, as the
    authors' code does."""

    @field_validator("angles")
    @classmethod
    def _angles(cls, angles: tuple[int, ...]) -> tuple[int, ...]:
        turned = {a % 360 for a in angles}
        if len(turned) < 2 or len(turned) != len(angles) or any(a % 90 for a in angles):
            raise ValueError("must be two to four different multiples of 90, such as 0, 90, 180, 270")
        return angles


def turn(images: Tensor, quarters: Tensor) -> Tensor:
    """Turn every image of [B, C, S, S] by its number of quarter turns anticlockwise, [B] in 0 to 3."""
    turned = torch.stack([images.rot90(k, (2, 3)) for k in range(4)])  # [4, B, C, S, S]
    return turned[quarters, torch.arange(len(images), device=images.device)]


class Rotation(Auxiliary):
    """One more pass of each global view, and a small head that names the angle."""

    name = "rotation"
    spec: RotationSpec

    def __init__(self, method: Method, spec: RotationSpec) -> None:
        super().__init__(method, spec)
        width = int(method.backbone.width) if spec.on == "backbone" else method.spec.out  # type: ignore[arg-type]
        hidden = spec.hidden or width
        norm = nn.BatchNorm1d(hidden) if spec.norm == "batch" else nn.LayerNorm(hidden)
        self.head = nn.Sequential(nn.Linear(width, hidden), norm, nn.ReLU(), nn.Linear(hidden, len(spec.angles)))

    @classmethod
    def check(cls, views: ViewsSpec) -> None:
        """Refuse views that are turned already: their angle cannot be told."""
        if any(crop.turns for crop in views.global_crops):
            raise SettingError("auxiliary.rotation needs views with an up, but views.turns is on; leave one of the two out")

    def draw(self, rows: int, step: Step) -> Tensor:
        """Which angle each image and view gets: [rows, 2]."""
        return torch.randint(len(self.spec.angles), (rows, VIEWS), generator=step.generator("rotation"))

    def forward(self, method: Method, views: Views, outputs: Outputs, step: Step) -> tuple[dict[str, Tensor], Carry]:
        """Cross-entropy in nats, a batch mean for each view, summed over the views."""
        labels = views.drawn[self.name]  # [B, 2]
        quarters = torch.tensor([a // 90 % 4 for a in self.spec.angles], device=labels.device)[labels]
        terms = []
        for v, images in enumerate(views.images[: min(VIEWS, views.n_global)]):
            features = method.encode(turn(images, quarters[:, v]), statistics=self.spec.statistics).pooled
            if self.spec.on == "projector":
                with batch_statistics(method.space.head, self.spec.statistics):
                    features = method.space.say([features])[0].projection
            logits = self.head(features)
            terms.append(F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels[:, v]))  # bf16 is too coarse here
        return {self.name: torch.stack(terms).sum()}, Carry()

"""Which quarter turn was applied: beside any method (EffSSL, arXiv 2210.09866; E-SSL, arXiv 2111.00899) or alone (RotNet, arXiv 1803.07728).

EffSSL turns the method's own global views after all augmentation; E-SSL shows one small crop of its own in all turns. Either goes through the online
network only, in batches of its own: no teacher, queue or assignment meets a turned image.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from gnothi import distributed
from gnothi.auxiliary.auxiliary import Auxiliary, AuxiliarySpec
from gnothi.contracts import Carry, Outputs, SettingError, Step, Views
from gnothi.methods import METHODS, Method
from gnothi.models.backbone import LEAST_CELLS
from gnothi.models.micro_vit import cells, patch_side
from gnothi.models.teacher import Statistics, batch_statistics
from gnothi.views.batches import ViewsSpec
from gnothi.views.crops import CropSpec

EFFSSL = {"swav": 0.1, "simclr": 0.2, "simsiam": 0.2, "barlow": 4.0, "byol": 0.1, "moco": 0.1, "dino": 0.1, "vicreg": 1.0, "none": 1.0}
"""Weights for a sum over two views, by method: SwAV's stands in the authors' code, the others are not known; docs/rotation.md says where from."""
ESSL = {"simclr": 0.4, "simsiam": 0.4, "barlow": 8.0, "byol": 0.4, "moco": 0.4, "swav": 0.2, "dino": 0.2, "vicreg": 2.0, "none": 1.0}
"""Weights for a mean over all turned copies: the first three stand in the authors' code, the others are not known."""
ESSL_LARGE = {"simsiam": 0.08}
"""What the authors' code changes for ImageNet."""
SMALL = 64
"""Crops of up to so many pixels follow what E-SSL does on CIFAR-10, larger ones what it does on ImageNet."""
PATCH = 16
"""Side of most ViTs' patches in pixels, where they leave cells enough."""
MOST_HIDDEN = 2048
"""Width of the heads in the code of both."""


class RotationSpec(AuxiliarySpec):
    """Settings of rotation."""

    weight: float | None = Field(default=None, ge=0)  # type: ignore[assignment]  # settled to a number before a run is built
    """Weight of the cross-entropy. None: by form and method, as docs/rotation.md lists them with their sources."""
    form: Literal["effssl", "essl"] = "effssl"
    """"effssl" turns global views of the method; "essl" turns one small crop of its own."""
    copies: Literal["one", "all"] | None = None
    """One random angle for each image and view, or a copy for every angle. None: one for "effssl" beside a method, all otherwise."""
    angles: tuple[int, ...] = (0, 90, 180, 270)
    """Degrees anticlockwise to tell apart: different multiples of 90."""
    views: tuple[int, ...] | None = None
    """Which global views "effssl" turns, counted from 0. None: the first two beside a method, the first alone."""
    crop_size: int | None = Field(default=None, gt=0)
    """Side of the crop of "essl" in pixels. None: about half that of the method's views, a multiple of 8, or of 16 where ViTs have patches of 16;
    96 where the views have 224 or more."""
    crop_area: tuple[float, float] | None = None
    """Part of the image's area that the crop of "essl" covers. None: 20 to 100 % beside views of up to 64 pixels, 5 to 14 % beside larger ones."""
    on: Literal["backbone", "projector"] = "backbone"
    """What the head reads: the representation, or the method's projection of it."""
    hidden: tuple[int, ...] | None = None
    """Widths of the head's hidden layers. None: for "effssl" one as wide as what it reads, for "essl" two of four times that, 2,048 at most."""
    norm: Literal["batch", "layer"] | None = None
    """Normalisation in the head. None: "batch" for "effssl", "layer" for "essl"."""
    last_relu: bool | None = None
    """A ReLU after the last hidden layer too. None: yes, but for "essl" with SimSiam or beside views of more than 64 pixels."""
    statistics: Statistics | None = None
    """"keep" leaves BatchNorm's running statistics, which evaluation uses, to upright images; "update" lets turned ones supply their share, as the
    authors' code does. None: "keep" beside a method, "update" alone."""
    joint: bool = False
    """Views are turned as one batch; otherwise a batch a view, with BatchNorm statistics of its own, as the authors' code does."""
    reduction: Literal["sum", "mean"] = "sum"
    """Of the views' terms; the weight that None comes to makes both the same."""

    @field_validator("angles")
    @classmethod
    def _angles(cls, angles: tuple[int, ...]) -> tuple[int, ...]:
        turned = {a % 360 for a in angles}
        if len(turned) < 2 or len(turned) != len(angles) or any(a % 90 for a in angles):
            raise ValueError("must be two to four different multiples of 90, such as 0, 90, 180, 270")
        return angles

    @field_validator("views")
    @classmethod
    def _views(cls, views: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if views is not None and (not views or len(set(views)) < len(views) or min(views) < 0):
            raise ValueError(f"must be different numbers of views from 0 up, got {list(views)}")
        return views

    @field_validator("crop_area")
    @classmethod
    def _area(cls, area: tuple[float, float] | None) -> tuple[float, float] | None:
        return area if area is None else CropSpec(area=area).area

    @field_validator("hidden")
    @classmethod
    def _hidden(cls, hidden: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if hidden is not None and (not hidden or min(hidden) < 1):
            raise ValueError(f"must be widths of at least one layer, got {list(hidden)}")
        return hidden

    def settled(self, method: str, views: ViewsSpec | None = None) -> Self:
        """Presets of the form for a method and its views."""
        essl, side = self.form == "essl", views.global_crops[0].size if views else SMALL
        idle = [k for k in (("views",) if essl else ("crop_size", "crop_area")) if getattr(self, k) is not None]
        if idle:
            raise SettingError(f"auxiliary.rotation.{idle[0]} means nothing with auxiliary.rotation.form={self.form}; leave it out")
        if self.on == "projector" and not METHODS[method][1].compares:
            raise SettingError(f'auxiliary.rotation.on must be "backbone" for method {method}, which has no projector')
        rules: dict[str, Any] = {
            "copies": "all" if essl or method == "none" else "one",
            "norm": "layer" if essl else "batch",
            "last_relu": not (essl and (method == "simsiam" or side > SMALL)),
            "statistics": "update" if method == "none" else "keep",
        }
        if essl:
            rules |= {"crop_size": _crop_size(side), "crop_area": (0.2, 1.0) if side <= SMALL else (0.05, 0.14)} if views else {}
        else:
            n = len(views.global_crops) if views else 2
            rules["views"] = (0,) if method == "none" else tuple(range(min(2, n)))
            if views and self.views and max(self.views) >= n:
                raise SettingError(f"auxiliary.rotation.views must lie below the number of global views, {n}, got {list(self.views)}")
        given = {k for k in rules if getattr(self, k) is not None}
        full = self.model_copy(update={k: v for k, v in rules.items() if k not in given})
        return full.model_copy(update={"weight": full._weight(method, side)}) if full.weight is None else full

    def _weight(self, method: str, side: int) -> float:
        if self.form == "essl":
            return (ESSL | ESSL_LARGE if side > SMALL else ESSL).get(method, 0.4)
        return EFFSSL.get(method, 0.1) * (len(self.views or ()) if self.reduction == "mean" else 1)


def _crop_size(side: int) -> int:
    """About half the side, 96 from 224 up; so that patches fit, a multiple of 8, and of 16 where those of a ViT have 16 pixels."""
    unit = PATCH if side % PATCH == 0 and side >= LEAST_CELLS * PATCH else 8
    return 96 if side >= 224 else max(8, round(side / 2 / unit) * unit)


def turn(images: Tensor, quarters: Tensor) -> Tensor:
    """Turn every image of [B, C, S, S] by its number of quarter turns anticlockwise, [B] in 0 to 3."""
    turned = torch.stack([images.rot90(k, (2, 3)) for k in range(4)])  # [4, B, C, S, S]
    return turned[quarters, torch.arange(len(images), device=images.device)]


def all_turns(images: Tensor, quarters: Tensor) -> tuple[Tensor, Tensor]:
    """Every image of [B, C, S, S] by each of [A] quarter turns: [A x B, C, S, S] in blocks of one turn, and which of the A it was, [A x B]."""
    labels = torch.arange(len(quarters), device=images.device).repeat_interleave(len(images))
    return torch.cat([images.rot90(k, (2, 3)) for k in quarters.tolist()]), labels


class Rotation(Auxiliary):
    """More passes of the network, and a small head that names the angle."""

    name, alone = "rotation", True
    spec: RotationSpec

    def __init__(self, method: Method, spec: RotationSpec) -> None:
        super().__init__(method, spec)
        spec = self.spec
        if spec.crop_size:
            cells(spec.crop_size, patch_side(method.backbone), "auxiliary.rotation.crop_size")
        self.quarters = tuple(a // 90 % 4 for a in spec.angles)
        width = int(method.backbone.width) if spec.on == "backbone" else method.spec.out  # type: ignore[arg-type]
        hidden = spec.hidden or ((min(MOST_HIDDEN, 4 * width),) * 2 if spec.form == "essl" else (width,))
        layers: list[nn.Module] = []
        for a, b in pairwise((width, *hidden)):
            layers += [nn.Linear(a, b), nn.BatchNorm1d(b) if spec.norm == "batch" else nn.LayerNorm(b), nn.ReLU()]
        self.head = nn.Sequential(*(layers if spec.last_relu else layers[:-1]), nn.Linear(hidden[-1], len(spec.angles)))

    @classmethod
    def check(cls, views: ViewsSpec) -> None:
        """Refuse views that are turned already: their angle cannot be told."""
        if any(crop.turns for crop in views.global_crops):
            raise SettingError("auxiliary.rotation needs views with an up, but views.turns is on; leave one of the two out")

    def crops(self, views: ViewsSpec) -> tuple[CropSpec, ...]:
        """For E-SSL one small crop, coloured as the method's last global view."""
        if self.spec.form == "effssl":
            return ()
        full, like = self.spec.settled(self.beside, views), views.global_crops[-1]
        return (like.model_copy(update={"size": full.crop_size, "area": full.crop_area}),)

    def passes(self, views: ViewsSpec) -> tuple[int, ...]:
        """Sides of the turned images."""
        sides = [c.size for c in self.crops(views)] or [views.global_crops[v].size for v in self.spec.views or ()]
        return tuple(sides * (len(self.quarters) if self.spec.copies == "all" else 1))

    def draw(self, rows: int, step: Step) -> Tensor | None:
        """Which angle each image and view gets, [rows, V]; nothing where all angles are shown."""
        if self.spec.copies == "all":
            return None
        return torch.randint(len(self.quarters), (rows, len(self.spec.views or (0,))), generator=step.generator("rotation"))

    def turned(self, views: Views) -> list[tuple[Tensor, Tensor]]:
        """Turned images [N, C, S, S] and which angle each has, [N]; a pair for each view."""
        crops = views.extra[self.name].images if self.spec.form == "essl" else [views.images[v] for v in self.spec.views or ()]
        quarters = torch.tensor(self.quarters, device=views.index.device)
        if self.spec.copies == "all":
            return [all_turns(images, quarters) for images in crops]
        labels = views.drawn[self.name]  # [B, V]
        return [(turn(images, quarters[labels[:, v]]), labels[:, v]) for v, images in enumerate(crops)]

    def forward(self, method: Method, views: Views, outputs: Outputs, step: Step) -> tuple[dict[str, Tensor], Carry]:
        """Cross-entropy in nats: a mean over a view's turned images, then over views their sum or mean."""
        pairs = self.turned(views)
        n = len(pairs)
        if self.spec.joint:
            pairs = [(torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs]))]
        terms = [F.cross_entropy(self.logits(method, images), labels) for images, labels in pairs]
        return {self.name: torch.stack(terms).mean() * (n if self.spec.reduction == "sum" else 1)}, Carry()

    def diagnose(self, method: Method, views: Views, step: Step) -> dict[str, float]:
        """``accuracy``: share of the turned images whose angle is named, and what ``chance`` gives."""
        right = torch.cat([self.logits(method, images).argmax(1) == labels for images, labels in self.turned(views)])
        return {"accuracy": float(distributed.mean(right.float().mean())), "chance": 1 / len(self.quarters)}

    def logits(self, method: Method, images: Tensor) -> Tensor:
        """What the head says of images: [N, C, S, S] -> [N, A]."""
        statistics: Statistics = self.spec.statistics or "keep"
        features = method.encode(images, statistics=statistics).pooled
        if self.spec.on == "projector":
            with batch_statistics(method.space.head, statistics):
                features = method.space.say([features])[0].projection
        logits: Tensor = self.head(features)
        return logits

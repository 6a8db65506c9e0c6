"""What every method is made of: a backbone, its slow twin where there is a teacher, and a Space in which views are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gnothi.contracts import Branch, Carry, Encoding, Outputs, Said, Spec, Step, Views, Want
from gnothi.models.heads import Head, Norm
from gnothi.models.teacher import Statistics, batch_statistics, follow, twin
from gnothi.schedules import cosine


class MethodSpec(Spec):
    """Settings that every method has."""

    hidden: int = Field(default=512, gt=0)
    """Width of the projector's hidden layers."""
    out: int = Field(default=128, gt=1)
    """Width of the projection."""
    layers: int = Field(default=2, gt=0, le=64)
    """Linear layers of the projector."""
    norm: Norm = "batch"
    """Normalisation in the heads: "batch" for CNNs, "none" where there must be no BatchNorm."""
    joint_views: bool = True
    """Crops of one size go through network and heads as one batch; otherwise crop by crop, with BatchNorm statistics a crop."""


class TeacherSpec(MethodSpec):
    """Settings of a method with a slow twin."""

    momentum: float = Field(default=0.99, ge=0, le=1)
    """How much of itself the teacher keeps at the first step."""
    momentum_end: float = Field(default=1.0, ge=0, le=1)
    """And at the last; half a cosine between."""


TINY = 16
"""Crops of up to so many pixels take float32 on a CPU: oneDNN's bf16 gradient of a strided convolution is garbage where its input has one pixel."""


@dataclass(frozen=True)
class Group:
    """Parameters with a learning rate of their own: those whose names match ``pattern``."""

    pattern: str
    schedule: Literal["recipe", "constant"] = "recipe"
    """"constant" ignores warm-up and decay of the rate."""
    scale: float = 1.0
    """Times the recipe's rate."""


class Space(nn.Module):
    """Where a method compares: a head, its slow twin where there is a teacher, and what the comparison remembers.

    The method has one for images; an auxiliary makes its own for patches (``Method.fresh_space``), so that targets of patches never meet the
    centre or queue of images.

    Args:
        width: of the features it compares.
        spec: the method's settings.
    """

    both_learn: ClassVar[bool] = False
    """Targets are the online projections, and take gradient."""
    symmetric: ClassVar[bool] = False
    """``match(a, b)`` equals ``match(b, a)``: the method's own loss needs one direction only."""
    predictor_alone: ClassVar[bool] = False
    """There is a predictor that can be taught on detached projections."""

    def __init__(self, width: int, spec: MethodSpec) -> None:
        super().__init__()
        self.spec = spec
        self.head = self.fresh_head(width)
        self.slow = twin(self.head) if isinstance(spec, TeacherSpec) else None

    def fresh_head(self, width: int) -> Head:
        """A new head of this method's kind for features of another width."""
        s = self.spec
        return Head(width, hidden=s.hidden, out=s.out, layers=s.layers, norm=s.norm)

    def momentum(self, step: Step) -> float | None:
        """The teacher's momentum, None where there is no teacher."""
        return cosine(step.progress, self.spec.momentum, self.spec.momentum_end) if isinstance(self.spec, TeacherSpec) else None

    def say(self, features: list[Tensor], head: Callable[[Tensor], Said] | None = None) -> list[Said]:
        """Features of each crop through a head, together or crop by crop: [B, D] each -> Said each."""
        head = self.head if head is None else head
        if not self.spec.joint_views:
            return [head(f) for f in features]
        sizes = [len(f) for f in features]
        projections, predictions = (x.split(sizes) for x in head(torch.cat(features)))
        return [Said(p, q) for p, q in zip(projections, predictions, strict=True)]

    def answer(self, features: list[Tensor], said: list[Said]) -> list[Said]:
        """The target side of the first crops, without gradient: the teacher's words, or the online ones detached."""
        if self.slow is None:
            return [s.detach() for s in said[: len(features)]]
        with torch.no_grad():
            return self.say(features, self.slow)

    def targets(self, said: list[Said], step: Step) -> Tensor:
        """What is costly about targets, once: crops concatenated (then gathered, where rows of other processes are needed): [G x B, ...]."""
        return torch.cat([s.projection for s in said])

    def match(self, predictions: Tensor, targets: Tensor, *, index: Tensor | None = None, weight: Tensor | None = None, step: Step) -> Tensor:
        """How badly N predictions agree with their partners among M targets.

        Args:
            predictions: [N, Q].
            targets: [M, ...] as ``targets`` made them.
            index: [N] local row of each partner; row i with row i where None.
            weight: [N] or None.
            step: where training is.

        Returns:
            [] mean over all N rows of weight x loss; losses of batch statistics normalise the weights and multiply by their mean.
        """
        raise NotImplementedError

    def agree(self, said: list[Said], targets: Tensor, step: Step) -> Tensor:
        """The method's whole composition over crops: the mean over pairs of a crop and a target of another crop."""
        parts = targets.split(len(said[0].projection))
        pairs = [(v, g) for g in range(len(parts)) for v in range(len(said)) if v != g]
        terms = [self.match(said[v].prediction, parts[g], step=step) for v, g in pairs]
        return torch.stack(terms).mean()

    def frozen(self, step: Step) -> tuple[str, ...]:
        """Name patterns of parameters that must not move in this step."""
        return ()

    def keep(self, answered: list[Said]) -> Carry:
        """What ``settle`` needs of this step."""
        return Carry()

    def settle(self, carry: Carry, step: Step) -> None:
        """Move the slow twin and the memories, after the optimiser's step."""
        momentum = self.momentum(step)
        if self.slow is not None and momentum is not None:
            follow(self.slow, self.head, momentum)


def pick(targets: Tensor, index: Tensor | None) -> Tensor:
    """Partners of all rows."""
    return targets if index is None else targets[index]


class Method(nn.Module):
    """Views -> outputs -> named loss terms, by a backbone and a Space.

    Args:
        backbone: the network that learns.
        spec: settings of the method.
    """

    name: ClassVar[str]
    space_type: ClassVar[type[Space]]
    multi_crop: ClassVar[bool] = True
    """Takes local crops beside the two global ones."""
    accumulates: ClassVar[bool] = True
    """The loss is a mean over images, so a batch may be split into micro-batches."""
    compares: ClassVar[bool] = True
    """It compares two views of an image in its Space; otherwise one view will do, and auxiliaries must be such as work alone."""
    autocast: torch.dtype = torch.float32
    """Of the backbone's matrix products. Heads and losses stay in float32: cosines over a temperature are too fine for less."""

    def __init__(self, backbone: nn.Module, spec: MethodSpec) -> None:
        super().__init__()
        self.backbone, self.spec = backbone, spec
        self.space = self.fresh_space(int(backbone.width))  # type: ignore[arg-type]
        self.slow = twin(backbone) if isinstance(spec, TeacherSpec) else None

    def fresh_space(self, width: int, **changes: Any) -> Space:
        """A new Space of this method's kind, with some of its settings changed."""
        return self.space_type(width, type(self.spec)(**{**self.spec.model_dump(), **changes}) if changes else self.spec)

    def groups(self) -> tuple[Group, ...]:
        """Parameters that need a rate of their own; all others take the recipe's."""
        return ()

    def frozen(self, step: Step) -> tuple[str, ...]:
        """Name patterns whose gradients are dropped in this step, after clipping."""
        return self.space.frozen(step)

    def weights(self, step: Step) -> dict[str, float]:
        """Weight of each term of ``loss``."""
        return {self.name: 1.0}

    def encode(
        self, images: Tensor, want: Want = Want(), mask: Tensor | None = None, statistics: Statistics = "update", backbone: nn.Module | None = None
    ) -> Encoding:
        """One more pass of the online network (or of ``backbone``); "keep" leaves BatchNorm's running statistics alone."""
        backbone = self.backbone if backbone is None else backbone
        half = self.autocast != torch.float32 and (images.device.type != "cpu" or images.shape[-1] > TINY)
        with batch_statistics(backbone, statistics), torch.autocast(images.device.type, self.autocast) if half else nullcontext():
            encoding: Encoding = backbone(images, want, mask)
        return encoding.map(torch.Tensor.float) if half else encoding

    def encodings(self, images: Iterable[Tensor], want: Want, backbone: nn.Module, masks: Tensor | None = None) -> list[Encoding]:
        """Encode every crop, those of one size as one batch where views are joint.

        Args:
            images: [B, C, H, W] each.
            want: what the encodings must hold.
            backbone: online or slow.
            masks: [G, B, N] of the first G crops, or None.
        """
        images = list(images)
        keys = [(i.shape[-1], masks is not None and v < len(masks)) if self.spec.joint_views else v for v, i in enumerate(images)]
        encodings: dict[int, Encoding] = {}
        for key in dict.fromkeys(keys):
            group = [v for v, k in enumerate(keys) if k == key]
            mask = torch.cat([masks[v] for v in group]) if masks is not None and group[0] < len(masks) else None
            joint = self.encode(torch.cat([images[v] for v in group]), want, mask, backbone=backbone)
            for i, v in enumerate(group):
                part = slice(i * len(images[v]), (i + 1) * len(images[v]))
                encodings[v] = joint.map(itemgetter(part)) if len(group) > 1 else joint
        return [encodings[v] for v in range(len(images))]

    def forward(self, views: Views, want: Want, step: Step) -> Outputs:
        """Every crop through the network, the global ones through the target side. Nothing moves but BatchNorm's running statistics."""
        online = self.encodings(views.images, want, self.backbone, views.masks)
        said = self.space.say([e.pooled for e in online])
        with torch.no_grad():
            if self.slow is None:
                target = [e.map(torch.Tensor.detach) for e in online[: views.n_global]]
            else:
                target = self.encodings(views.images[: views.n_global], want, self.slow)
            answered = self.space.answer([e.pooled for e in target], said)
        return Outputs(tuple(map(Branch, online, said)), tuple(map(Branch, target, answered)))

    def loss(self, views: Views, outputs: Outputs, step: Step) -> tuple[dict[str, Tensor], Carry]:
        """Named terms, and what ``after_step`` needs."""
        said, answered = [b.said for b in outputs.online], [b.said for b in outputs.target]
        targets = self.space.targets(said[: views.n_global] if self.space.both_learn else answered, step)
        value = self.space.agree(said[:1] if self.space.symmetric and len(said) == views.n_global else said, targets, step)
        return {self.name: value}, self.space.keep(answered)

    @torch.no_grad()
    def after_step(self, carry: Carry, step: Step) -> None:
        """Move the teacher and the memories. No collective: the carry is merged already."""
        momentum = self.space.momentum(step)
        if self.slow is not None and momentum is not None:
            follow(self.slow, self.backbone, momentum)
        self.space.settle(carry, step)

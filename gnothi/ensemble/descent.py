"""A code an image, found by gradient descent: the code from which small networks predict what every member says of the image.

After Wallace et al. 2021 (arXiv 2110.10293). Of that paper only the abstract and the patent's were read: the settings here are ours, not theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gnothi.contracts import Spec
from gnothi.ensemble.closed import Linear
from gnothi.ensemble.decoders import Decoders, by_member
from gnothi.ensemble.members import blocks
from gnothi.ensemble.rows import OPTIMISERS
from gnothi.ensemble.scaling import Scaling
from gnothi.schedules import cosine

ROWS = 512
"""Images that descend together."""
FEWEST = 32
"""Fewer are filled up to this many: products of very few rows round differently, and a code shall not depend on what stands beside it."""


class DescentSpec(Spec):
    """Settings of the descent."""

    start: Literal["pca", "average", "member", "random"] = "pca"
    """Codes before the first step: principal components of the concatenation, the average of the members, one member, or a random projection."""
    start_power: float = Field(default=0.0, ge=0, le=2)
    """Of start=pca: 1 plain, 0.5 half-whitened, 0 white."""
    start_member: int = Field(default=0, ge=0)
    """Of start=member: which, counted from 0."""
    width: int | None = Field(default=None, ge=1)
    """Of a code; by default that of the widest member. The average and a member alone have their own."""
    loss: Literal["cosine", "squared", "cosine+smooth-l1"] = "cosine"
    """Between what a network predicts and a member's features."""
    standardise: Literal["none", "centre", "dimension", "phi-s"] = "centre"
    """What is predicted: features at unit length as they are, less their mean, standardised number by number, or by PHI-S."""
    layers: int = Field(default=1, ge=0, le=4)
    """Hidden layers of each member's network; 0 makes it linear."""
    hidden: int | None = Field(default=None, ge=1)
    """Their width; by default that of a code."""
    bias: bool = True
    """Whether layers have one."""
    optimiser: Literal["adam", "sgd"] = "adam"
    """Of codes and networks."""
    lr_codes: float = Field(default=0.05, gt=0)
    """Of codes, as a part of the root mean square of their numbers at the start; with sgd it is the rate itself."""
    lr_networks: float = Field(default=2e-3, gt=0)
    """Of the networks."""
    eps: float = Field(default=1e-5, gt=0)
    """Of Adam for codes; docs/ensemble.md says why it is not smaller."""
    epochs: int = Field(default=10, ge=1)
    """Passes over the training rows, at most; both rates fall to 0 by half a cosine."""
    batch: int = Field(default=512, ge=1)
    """Rows of a step of the fit."""
    steps: int = Field(default=20, ge=0)
    """Of the codes of an image when it is embedded; 0 leaves them at the start."""
    drop: float = Field(default=0.0, ge=0, lt=1)
    """Probability with which a row leaves a member out in a step of the fit; the one it explains worst always stays."""
    l2: float = Field(default=0.0, ge=0)
    """Penalty l2/2 on squared codes and networks, equal on both, which fixes their share of the spectrum."""
    bound: float | None = Field(default=None, gt=0)
    """Codes are kept within this length, after every step."""
    sphere: bool = False
    """Codes are brought back to the length they start with on average, after every step."""
    power: float | None = Field(default=0.0, ge=0, le=2)
    """PCA of the finished codes by this power, fitted on training codes: the loss leaves their spectrum open, and k-NN depends on it.
    None leaves them as they are."""
    most: int | None = Field(default=None, ge=2)
    """Training rows that are fitted, at most, drawn by the seed; None for all."""
    shard: int = Field(default=16_384, ge=1)
    """Training rows that are visited together: of so many, codes and their optimiser's state are in memory."""
    holdout: float = Field(default=0.05, ge=0, lt=1)
    """Fraction of the training rows, at most 10,000, whose loss decides when the fit ends; 0 holds none out, and all epochs are run."""
    patience: int = Field(default=2, ge=1)
    """Looks at the held-out rows without a gain that end the fit; the best networks are kept."""


class Descent:
    """Where codes start, networks that predict members from them, and the descent between.

    Args:
        spec: the settings.
        start: features to first codes.
        targets: a scaling a member.
        decoders: the networks; frozen here.
        scale: root mean square of a number of the first codes.
        finish: from codes to the result; None leaves them. Free codes that take no step are left, too: they are the start.
    """

    form = "descent"
    free = True
    """Whether the codes of training images are variables of the fit."""

    def __init__(
        self, spec: DescentSpec, start: Any, targets: Sequence[Scaling], decoders: Decoders, scale: float, finish: Linear | None = None
    ) -> None:
        self.spec, self.start, self.targets, self.scale, self.finish = spec, start, list(targets), scale, finish
        self.decoders = decoders.eval().requires_grad_(False)
        self.log: dict[str, Any] = {}
        self.trained: tuple[Tensor, Tensor] | None = None
        """Row numbers [n] of the fit, or of its first rows, and their codes [n, r] as the fit left them; not part of what is written."""

    @property
    def width(self) -> int:
        """Of a result."""
        return self.start.width if self.finish is None else self.finish.width

    def transform(self, features: Sequence[Tensor | None], steps: int | None = None) -> Tensor:
        """[N, D_j] a member to [N, r]; None stands for a missing member, whose loss is left out.

        Args:
            features: of any scale.
            steps: of the descent; by default those of the settings, 0 gives the start.
        """
        codes = self.codes(features, steps)
        still = self.free and (self.spec.steps if steps is None else steps) == 0
        return codes if self.finish is None or still else self.finish.transform([codes])

    def codes(self, features: Sequence[Tensor | None], steps: int | None = None) -> Tensor:
        """The same before ``finish``."""
        n = next(len(x) for x in features if x is not None)
        parts = [self._descend([None if x is None else x[part] for x in features], steps) for part in blocks(n, ROWS)]
        return torch.cat(parts)

    def _descend(self, features: Sequence[Tensor | None], steps: int | None) -> Tensor:
        steps, n = self.spec.steps if steps is None else steps, next(len(x) for x in features if x is not None)
        with torch.inference_mode(False):
            features = [None if x is None else torch.cat([x, x[-1:].expand(max(0, FEWEST - n), -1)]) for x in features]
            targets = [None if x is None else s(x) for x, s in zip(features, self.targets, strict=True)]
            codes: Tensor = self.start.transform(features)
            rows = OPTIMISERS[self.spec.optimiser](codes, self.rate, self.spec.eps)
            for k in range(steps):
                rate = 1.0 if self.spec.optimiser == "sgd" else cosine(k / steps, 1.0, 0.0)
                rows.step(slice(None), self.gradient(codes, targets), rate)
                self.bounded(codes, slice(None))
            return codes[:n]

    def learners(self) -> nn.Module:
        """The networks that the fit moves."""
        return self.decoders

    @property
    def rate(self) -> float:
        """The step of a number of a code."""
        return self.spec.lr_codes * (self.scale if self.spec.optimiser == "adam" else 1.0)

    def gradient(self, codes: Tensor, targets: Sequence[Tensor | None]) -> Tensor:
        """Of the loss of each row by its code, [B, r]."""
        with torch.enable_grad():
            free = codes.detach().requires_grad_()
            total = by_member(self.spec.loss, self.decoders(free), targets).sum()  # a sum: a row's gradient is its own, whatever stands beside it
            return torch.autograd.grad(total, free)[0] + self.spec.l2 * codes

    def bounded(self, codes: Tensor, which: slice | Tensor) -> None:
        """Hold the length of some codes, in place, as the settings say."""
        length = self.scale * math.sqrt(codes.shape[1])
        if self.spec.sphere:
            codes[which] = F.normalize(codes[which], dim=1) * length
        if self.spec.bound is not None:
            codes[which] *= (self.spec.bound / codes[which].norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1.0)

    def losses(self, features: Sequence[Tensor | None], codes: Tensor) -> Tensor:
        """[N, m] losses of codes (before ``finish``)."""
        targets = [None if x is None else s(x) for x, s in zip(features, self.targets, strict=True)]
        with torch.no_grad():
            return by_member(self.spec.loss, self.decoders(codes), targets)

    # ---- on disk
    def tensors(self) -> dict[str, Tensor]:
        """All that was fitted."""
        held = {f"start.{k}": v for k, v in self.start.tensors().items()} | {f"networks.{k}": v for k, v in self.decoders.state_dict().items()}
        for j, s in enumerate(self.targets):
            held |= {f"targets.{j}.mean": s.mean, f"targets.{j}.scale": s.scale}
        return held | ({} if self.finish is None else {f"finish.{k}": v for k, v in self.finish.tensors().items()})

    def about(self) -> dict[str, Any]:
        """The rest, as plain values."""
        d = self.decoders
        networks = {"width": d.first.in_features, "members": d.members, "hidden": d.hidden, "layers": d.layers, "bias": d.first.bias is not None}
        finish = None if self.finish is None else self.finish.about()
        return {"form": self.form, "start": self.start.about(), "networks": networks, "scale": self.scale, "finish": finish}

    @classmethod
    def restore(cls, about: dict[str, Any], tensors: dict[str, Tensor], spec: Any) -> Descent:
        """From ``about`` and ``tensors``."""

        def of(front: str) -> dict[str, Tensor]:
            return {k.removeprefix(front): v for k, v in tensors.items() if k.startswith(front)}

        decoders = Decoders(**about["networks"])
        networks = of("networks.")
        decoders.to(next(iter(networks.values())).dtype).load_state_dict(networks)
        targets = [Scaling(tensors[f"targets.{j}.mean"], tensors[f"targets.{j}.scale"]) for j in range(len(decoders.members))]
        finish = None if about["finish"] is None else Linear.restore(about["finish"], of("finish."))
        return cls(spec, cls.restore_start(about["start"], of("start."), targets), targets, decoders, float(about["scale"]), finish)

    @classmethod
    def restore_start(cls, about: dict[str, Any], tensors: dict[str, Tensor], targets: Sequence[Scaling]) -> Any:
        """Where codes start, from its own ``about`` and ``tensors``, and what networks predict."""
        return Linear.restore(about, tensors)

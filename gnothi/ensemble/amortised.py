"""A small network from all members' features to the code that a descent would look for; a few steps of descent may follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from gnothi.ensemble.best import Known
from gnothi.ensemble.closed import Linear
from gnothi.ensemble.descending import SAMPLE, begun, descended
from gnothi.ensemble.descent import Descent, DescentSpec
from gnothi.ensemble.members import Features, rows_of, some_rows
from gnothi.ensemble.scaling import Scaling
from gnothi.models.heads import mlp
from gnothi.randomness import seeded


class AmortisedSpec(DescentSpec):
    """Settings of the network and, where steps follow, of the descent."""

    steps: int = Field(default=0, ge=0)
    """Of descent after the network; 0 takes what it says."""
    encoder_hidden: int | None = Field(default=None, ge=1)
    """Width of the hidden layer of the network from features to codes; by default that of a code."""


class Amortiser:
    """A linear start, and what a network adds to it.

    Args:
        linear: features to [N, r].
        targets: a scaling a member: what the network sees; a missing member is zeros to it.
        network: [N, D] to [N, r].
        scale: of what it sees.
    """

    def __init__(self, linear: Linear, targets: Sequence[Scaling], network: nn.Module, scale: float) -> None:
        self.linear, self.targets, self.network, self.scale, self.width = linear, list(targets), network, scale, linear.width

    def __call__(self, features: Sequence[Tensor | None]) -> Tensor:
        """[N, D_j] a member to [N, r], with gradients for the network."""
        first = self.linear.transform(features)
        seen = [first.new_zeros(len(first), len(s.mean)) if x is None else s(x) for x, s in zip(features, self.targets, strict=True)]
        moved: Tensor = self.network(self.scale * torch.cat(seen, dim=1))
        return first + moved

    @torch.no_grad()
    def transform(self, features: Sequence[Tensor | None]) -> Tensor:
        """The same without gradients."""
        return self(features)

    def tensors(self) -> dict[str, Tensor]:
        """All that was fitted, but for the scalings."""
        return {f"linear.{k}": v for k, v in self.linear.tensors().items()} | {f"network.{k}": v for k, v in self.network.state_dict().items()}

    def about(self) -> dict[str, Any]:
        """The rest, as plain values."""
        shapes = [v.shape for k, v in self.network.state_dict().items() if k.endswith("weight")]
        return {"linear": self.linear.about(), "widths": [shapes[0][1], *(s[0] for s in shapes)], "scale": self.scale}


class Amortised(Descent):
    """A descent whose codes start where a network says."""

    form = "amortised"
    free = False
    start: Amortiser

    def learners(self) -> nn.Module:
        """Both kinds of networks."""
        return nn.ModuleList([self.decoders, self.start.network])

    @classmethod
    def restore_start(cls, about: dict[str, Any], tensors: dict[str, Tensor], targets: Sequence[Scaling]) -> Amortiser:
        """From ``about`` and ``tensors`` of the start."""
        parts: dict[str, dict[str, Tensor]] = {"linear": {}, "network": {}}
        for key, value in tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = value
        network = mlp(about["widths"], "none").to(next(iter(parts["network"].values())).dtype)
        network.load_state_dict(parts["network"])
        return Amortiser(Linear.restore(about["linear"], parts["linear"]), targets, network.requires_grad_(False), float(about["scale"]))


def amortised(features: Features, spec: AmortisedSpec, known: Known) -> Amortised:
    """Fit the network from features to codes and those from codes to features, together, by the losses of the descent.

    Args:
        features: [N, D_j] a member.
        spec: the settings.
        known: the seed, and where the state of the fit is kept.
    """
    plain = begun(features, spec, known.seed)
    width, wide = plain.start.width, sum(len(s.mean) for s in plain.targets)
    with seeded(known.seed, "ensemble amortiser"):
        network = mlp([wide, spec.encoder_hidden or width, width], "none").to(plain.decoders.first.weight.dtype)
    for p in network[-1].parameters():  # it begins as the linear start
        nn.init.zeros_(p)
    drawn = some_rows(len(features[0]), SAMPLE, known.seed, "ensemble scale")
    few = torch.cat([s(rows_of(x, drawn)) for x, s in zip(features, plain.targets, strict=True)], dim=1)
    start = Amortiser(plain.start, plain.targets, network, 1 / float(few.square().mean().sqrt()))
    return descended(Amortised(spec, start, plain.targets, plain.decoders, plain.scale), features, known)

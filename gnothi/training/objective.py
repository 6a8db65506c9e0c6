"""What is minimised: a method, auxiliaries beside it, and the weights of their terms. This is what DDP wraps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from gnothi.auxiliary import Auxiliary
from gnothi.contracts import Carry, Step, Views, Want
from gnothi.distributed import rank, world
from gnothi.methods import Method
from gnothi.models.heads import Head


class Objective(nn.Module):
    """A method and its auxiliaries.

    Args:
        method: makes the outputs and its own terms.
        auxiliaries: more terms, by name.
    """

    def __init__(self, method: Method, auxiliaries: dict[str, Auxiliary] | None = None) -> None:
        super().__init__()
        self.method = method
        self.auxiliaries: Mapping[str, Auxiliary] = nn.ModuleDict(auxiliaries or {})  # type: ignore[assignment]

    def want(self) -> Want:
        """What all auxiliaries need of the encodings."""
        want = Want()
        for auxiliary in self.auxiliaries.values():
            want = want | auxiliary.want()
        return want

    def begun(self, name: str, step: Step) -> bool:
        """Whether an auxiliary takes part in this step."""
        return step.progress >= self.auxiliaries[name].spec.start

    def draw(self, views: Views, step: Step) -> Views:
        """Add the random numbers that auxiliaries asked for, drawn for the joint batch, then this process's rows; and what they make of them."""
        n = len(views.index)
        joint = {name: a.draw(n * world(), step) for name, a in self.auxiliaries.items()}
        mine = slice(rank() * n, (rank() + 1) * n)
        views = replace(views, drawn={name: d[mine].to(views.index.device) for name, d in joint.items() if d is not None})
        for auxiliary in self.auxiliaries.values():
            views = auxiliary.prepare(views, step)
        return views

    def forward(self, views: Views, step: Step) -> tuple[Tensor, dict[str, Tensor], dict[str, Carry]]:
        """The weighted sum [], each term detached, and what ``after_step`` needs. Nothing moves but BatchNorm's running statistics."""
        outputs = self.method(views, self.want(), step)
        terms, carry = self.method.loss(views, outputs, step)
        terms, carries, weights = dict(terms), {"method": carry}, self.weights(step)
        for name, auxiliary in self.auxiliaries.items():
            if self.begun(name, step):
                more, carries[name] = auxiliary(self.method, views, outputs, step)
                terms |= more
        total = torch.stack([weights[k] * v for k, v in terms.items()]).sum()
        idle = [p for name, a in self.auxiliaries.items() if not self.begun(name, step) for p in a.parameters() if p.requires_grad]
        if idle:  # so that every process has a gradient for every parameter
            total = total + 0 * torch.stack([p.sum() for p in idle]).sum()
        return total, {k: v.detach() for k, v in terms.items()}, carries

    def weights(self, step: Step) -> dict[str, float]:
        """Weight of every term in this step."""
        beside = [a.weights(step) for name, a in self.auxiliaries.items() if self.begun(name, step)]
        return {key: weight for weights in (self.method.weights(step), *beside) for key, weight in weights.items()}

    def frozen(self, step: Step) -> list[nn.Parameter]:
        """Parameters that must not move in this step."""
        patterns = [*self.method.frozen(step), *(f"auxiliaries.{n}.*" for n in self.auxiliaries if not self.begun(n, step))]
        return [p for n, p in self.named_parameters() if any(fnmatch(n, pattern) for pattern in patterns)]

    def parts(self) -> list[nn.Module]:
        """The method first, then each auxiliary: gradient norms are taken part by part, so that zeros of one do not reorder sums of another."""
        return [self.method, *self.auxiliaries.values()]

    @torch.no_grad()
    def after_step(self, carries: dict[str, Carry], step: Step) -> None:
        """Bring prototypes back to unit length, move teachers and memories."""
        if not self.method.frozen(step):
            moved = [self.method, *(a for name, a in self.auxiliaries.items() if self.begun(name, step))]
            for m in (m for part in moved for m in part.modules()):
                if isinstance(m, Head) and next(m.parameters()).requires_grad:
                    m.tidy()
        self.method.after_step(carries["method"], step)
        for name, auxiliary in self.auxiliaries.items():
            if name in carries:
                auxiliary.after_step(self.method, carries[name], step)

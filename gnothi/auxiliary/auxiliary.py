"""What every auxiliary objective is made of."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field
from torch import Tensor, nn

from gnothi.contracts import Carry, Outputs, Spec, Step, Views, Want
from gnothi.methods import Method
from gnothi.views.batches import ViewsSpec
from gnothi.views.crops import CropSpec


class AuxiliarySpec(Spec):
    """Settings that every auxiliary has."""

    weight: float = Field(default=1.0, ge=0)
    """Weight of its loss; 0 means not built at all, and the run is bit for bit the run without it."""
    start: float = Field(default=0.0, ge=0, lt=1)
    """Part of training after which it begins; before, its parameters do not move."""

    def settled(self, method: str, views: ViewsSpec | None = None) -> Self:
        """The same with what nobody set filled in by rule; what hangs on the views stays open without them.

        Args:
            method: name of the method beside which it works.
            views: crops that the method sees.

        Raises:
            SettingError: these settings do not go with the method or the views.
        """
        return self


class Auxiliary(nn.Module):
    """Named terms beside any method's.

    Args:
        method: beside which it works; raises SettingError where that makes no sense.
        spec: its settings; what nobody set is filled in for this method.
    """

    name: ClassVar[str]
    alone: ClassVar[bool] = False
    """It needs neither the method's Space nor its outputs, so it can train a network without one (method none)."""

    def __init__(self, method: Method, spec: AuxiliarySpec) -> None:
        super().__init__()
        self.spec, self.beside = spec.settled(method.name), method.name

    @classmethod
    def check(cls, views: ViewsSpec) -> None:
        """Raise SettingError where these views leave it nothing to learn."""

    def want(self) -> Want:
        """What it needs of the method's own encodings."""
        return Want()

    def crops(self, views: ViewsSpec) -> tuple[CropSpec, ...]:
        """Crops of its own beside the method's ``views``, which arrive as ``views.extra[name]``."""
        return ()

    def passes(self, views: ViewsSpec) -> tuple[int, ...]:
        """Sides of the images that go through the network for its sake, of every image of the batch: what ``plan`` counts."""
        return ()

    def draw(self, rows: int, step: Step) -> Tensor | None:
        """Random numbers for the joint batch of all processes, [rows, ...]; they arrive sliced as ``views.drawn[name]``."""
        return None

    def prepare(self, views: Views, step: Step) -> Views:
        """Make what needs other images of the joint batch, once ``drawn`` is there and before the batch is split into micro-batches."""
        return views

    def forward(self, method: Method, views: Views, outputs: Outputs, step: Step) -> tuple[dict[str, Tensor], Carry]:
        """Named terms, and what ``after_step`` needs."""
        raise NotImplementedError

    def diagnose(self, method: Method, views: Views, step: Step) -> dict[str, float]:
        """Measures of a batch for the lines of health, the same on every process; called in evaluation mode, without gradient. Nothing moves."""
        return {}

    def weights(self, step: Step) -> dict[str, float]:
        """Weight of each term."""
        return {self.name: self.spec.weight}

    def after_step(self, method: Method, carry: Carry, step: Step) -> None:
        """Move memories, after the optimiser's step."""

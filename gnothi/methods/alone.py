"""What methods are made of that compare no views of an image: they have no Space, and some of them know more of the images than their pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from gnothi.contracts import Said, Source, Spec, Step, Views
from gnothi.data.order import Order
from gnothi.methods.method import Method, Space


class NoSpace(Space):
    """Nothing is compared, so nothing is said."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.slow = None

    def momentum(self, step: Step) -> None:
        """There is no teacher."""

    def say(self, features: list[Tensor], head: Callable[[Tensor], Said] | None = None) -> list[Said]:
        """No head, no words: []."""
        return []


class Alone(Method):
    """A method without a Space.

    Args:
        backbone: the network that learns.
        spec: settings of the method; it has no heads for a Space.
    """

    multi_crop, compares = False, False
    judges: ClassVar[bool] = False
    """It has something to say of single images that do not train: ``judge``."""

    def __init__(self, backbone: nn.Module, spec: Spec) -> None:
        nn.Module.__init__(self)
        self.backbone, self.slow, self.space = backbone, None, NoSpace()
        self.spec = spec  # type: ignore[assignment]  # none of the settings that a MethodSpec has would mean anything

    def meet(self, source: Source) -> None:
        """Learn what there is to know of the images that train besides their pixels; once, before training.

        Raises:
            DataError: something is not known of one of them.
        """

    def order(self, n: int, batch: int, seed: int) -> Order | None:
        """The order in which it wants to meet the n rows; None for permutations."""
        return None

    def diagnose(self, views: Views, step: Step) -> dict[str, float]:
        """Measures of a batch for the lines of health, the same on every process; called in evaluation mode, without gradient. Nothing moves."""
        return {}

    def judge(self, vectors: Tensor, source: Source) -> dict[str, Tensor]:
        """Measures of images that do not train, [N] each by name, given the backbone's vectors of them [N, D]."""
        return {}

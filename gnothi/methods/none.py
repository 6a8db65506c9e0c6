"""No method: auxiliaries alone teach the network, as RotNet (arXiv 1803.07728) and Jigsaw (arXiv 1603.09246) do."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from gnothi.contracts import Carry, Outputs, Spec, Step, Views, Want
from gnothi.methods.alone import Alone


class NoneSpec(Spec):
    """No settings but the name."""

    name: Literal["none"] = "none"


class NoMethod(Alone):
    """A network, and neither head, loss nor teacher; its own views are not even encoded."""

    name = "none"

    def forward(self, views: Views, want: Want, step: Step) -> Outputs:
        """Nothing: auxiliaries that work alone make their own passes."""
        return Outputs((), ())

    def loss(self, views: Views, outputs: Outputs, step: Step) -> tuple[dict[str, Tensor], Carry]:
        """No term."""
        return {}, Carry()

    def weights(self, step: Step) -> dict[str, float]:
        """Of no term."""
        return {}

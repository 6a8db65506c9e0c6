"""A toy network of four blocks, and a method with layers beside it."""

from __future__ import annotations

from typing import Any

import toys
from torch import nn

from gnothi.auxiliary.layers import Layers, LayersSpec
from gnothi.methods import Method
from gnothi.randomness import seeded
from gnothi.training.objective import Objective


class Deep(toys.ToyBackbone):
    """Four blocks, and a final norm whose scale and shift say something."""

    def __init__(self) -> None:
        super().__init__()
        width = self.width
        self.blocks.extend(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)) for _ in range(2))
        self.block_widths = (width,) * 4
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)


def beside(
    name: str = "simclr", base: Method | None = None, *, backbone: Any = Deep, method: dict[str, Any] | None = None, **settings: Any
) -> Objective:
    base = base or toys.method(name, backbone=backbone, **(method or {}))
    with seeded(0, "layers"):
        return Objective(base, {"layers": Layers(base, LayersSpec(**settings)).double()})

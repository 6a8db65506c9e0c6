"""Numbers of the paper's heads: as many parameters as its authors' code has, counted on tensors that hold nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import toys

from gnothi.auxiliary.layers import Layers, LayersSpec
from gnothi.methods import METHODS
from gnothi.schedules import cosine


class Wide(toys.ToyBackbone):
    """A toy as wide and deep as a ViT."""

    def __init__(self, width: int) -> None:
        super().__init__(width=width)
        self.block_widths = (width,) * 12


def count(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("width", "middle", "final", "everything"), [(768, 6_299_648, 20_987_904, 115_548_160), (384, 5_513_216, 19_415_040, 105_324_544)]
)
def test_heads_are_as_large_as_those_of_the_authors_code(width: int, middle: int, final: int, everything: int) -> None:
    """MoCo v3 with a ViT-B and a ViT-S: projectors of 11 blocks and of the last, and 12 predictors, which here end with a bias instead of a norm."""
    with torch.device("meta"):
        spec = METHODS["moco"][0](hidden=4096, out=256, layers=3, norm="batch", predictor=4096)  # type: ignore[arg-type]
        method = METHODS["moco"][1](Wide(width), spec)  # type: ignore[arg-type]
        layers = Layers(method, LayersSpec(norm="shared"))
    exits: Any = layers.exits
    assert {count(e.head.projector) for e in exits.values()} == {middle} and len(exits) == 11
    assert count(method.space.head.projector) == final
    assert {count(e.head.predictor) for e in exits.values()} == {2_105_344 + 256} == {count(method.space.head.predictor)}
    assert count(layers) + count(method.space.head) == everything + 12 * 256


def test_the_teacher_of_four_steps_follows_as_the_authors_does() -> None:
    assert [round(cosine(t / 4, 0.996, 1.0), 6) for t in range(4)] == [0.996, 0.996586, 0.998, 0.999414]

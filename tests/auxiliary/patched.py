"""Local beside a toy method, views that overlap, and where their patches lie in plain numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import toys
from torch import Tensor, nn
from toys import MULTI_CROP, method, step, views

from gnothi.auxiliary.local import Local, LocalSpec
from gnothi.contracts import Carry, Encoding, Views, Want
from gnothi.randomness import generator, seeded
from gnothi.training.objective import Objective


class Masking(toys.ToyBackbone):
    """A toy whose hidden patches are a learned token."""

    patch_size = 4

    def __init__(self, channels: int = 3, width: int = 12) -> None:
        super().__init__(channels, width)
        self.mask_token = nn.Parameter(torch.randn(width, generator=generator(0, "mask token")))
        self.seen: list[Tensor | None] = []

    def forward(self, images: Tensor, want: Want = Want(), mask: Tensor | None = None) -> Encoding:
        self.seen.append(mask)
        encoding = super().forward(images, want, mask)
        return encoding if mask is None else replace(encoding, pooled=encoding.pooled + 0 * self.mask_token.sum())


def beside(name: str = "dino", *, backbone: Any = toys.ToyBackbone, spec: dict[str, Any] | None = None, **settings: Any) -> Objective:
    base = method(name, backbone=backbone, **(spec or {}))
    with seeded(1, "local"):
        local = Local(base, LocalSpec(**settings)).double()
        if local.space is not None:
            for p in local.space.parameters():
                p.data += 0.05 * torch.randn_like(p)  # the token head's teacher is another one already
            if hasattr(local.space, "centre"):
                local.space.centre += torch.randn_like(local.space.centre)
    return Objective(base, {"local": local})


def crops(name: str, b: int = 3, seed: int = 0) -> Views:
    """Views that overlap, the last image's not at all."""
    made = views(b, int(name in MULTI_CROP), seed=seed)
    boxes = made.boxes.clone()
    boxes[:, :, :2] /= 4
    boxes[1:, -1, :2] += torch.tensor([500.0, 900.0])
    return replace(made, boxes=boxes)


def run(objective: Objective, given: Views, number: int = 3) -> tuple[Views, Any, dict[str, Tensor], Carry]:
    drawn = objective.draw(given, step(number))
    outputs = objective.method(drawn, objective.want(), step(number))
    terms, carry = objective.auxiliaries["local"](objective.method, drawn, outputs, step(number))
    return drawn, outputs, terms, carry


def source(given: Views, crop: int, image: int, u: float, v: float) -> tuple[float, float]:
    """Where a place of a crop as shown, in [0, 1] to the right and down, lies in the source: undo the turns, then the mirror, then the cut."""
    left, top, wide, high = given.boxes[crop, image].tolist()
    for _ in range(int(given.turns[crop, image])):
        u, v = 1 - v, u
    u = 1 - u if given.flips[crop, image] else u
    return left + u * wide, top + v * high


def lies(given: Views, crop: int, image: int, grid: tuple[int, int]) -> list[tuple[float, float]]:
    """Centres of a crop's cells in the source, in plain numbers."""
    return [source(given, crop, image, (c + 0.5) / grid[1], (r + 0.5) / grid[0]) for r in range(grid[0]) for c in range(grid[1])]


def diagonal(given: Views, crop: int, image: int, grid: tuple[int, int]) -> float:
    _, _, wide, high = given.boxes[crop, image].tolist()
    rows, columns = grid if given.turns[crop, image] % 2 == 0 else grid[::-1]
    return math.hypot(wide / columns, high / rows)

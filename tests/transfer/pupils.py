"""Toy students of classes or vectors that lie in a file, for batches of toys.views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import toys

from gnothi.data import ArraySource
from gnothi.data.targets import Targets, keys
from gnothi.methods import METHODS
from gnothi.methods.alone import Alone
from gnothi.randomness import generator, seeded

N = 100
WIDTHS = (6, 4)
"""Of two teachers' vectors."""


def source() -> ArraySource:
    return ArraySource(torch.randint(256, (N, 3, 16, 16), generator=generator(0, "images"), dtype=torch.uint8).numpy())


def vectors() -> dict[str, torch.Tensor]:
    return {f"vectors.{i}": F.normalize(toys.spherical(N, d, i), dim=1).float() for i, d in enumerate(WIDTHS)}


def distilled(folder: Path, backbone: Any = toys.ToyBackbone, **settings: Any) -> Alone:
    """A student of vectors, in float64."""
    path = folder / "vectors.safetensors"
    if not path.exists():
        Targets(keys(source()), vectors(), {"kind": "vectors", "dims": list(WIDTHS)}).write(path)
    return _made("distil", path, backbone, settings)


def classified(folder: Path, backbone: Any = toys.ToyBackbone, **settings: Any) -> Alone:
    """A student of one of five classes and one of seven."""
    path = folder / "classes.safetensors"
    if not path.exists():
        g = generator(0, "classes")
        index = torch.stack([torch.randint(k, (N, 1), generator=g) for k in (5, 7)], 1).int()
        Targets(keys(source()), {"index": index, "share": torch.ones(N, 2, 1)}, {"kind": "classes", "classes": [5, 7]}).write(path)
    return _made("classify", path, backbone, settings)


def _made(name: str, path: Path, backbone: Any, settings: dict[str, Any]) -> Alone:
    with seeded(0, "student"):
        made: Any = METHODS[name][1](backbone(), METHODS[name][0](targets=str(path), **settings))  # type: ignore[arg-type]
        made.meet(source())
    return made.double()

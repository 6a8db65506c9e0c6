"""Cells on five channels of 16 bits, drawn here: six phenotypes that differ in shape and texture and not at all in brightness.

    python examples/microscopy.py [--as-they-come]

Channels are nucleus, membrane, fibres, granules and reticulum. Where a phenotype differs from `usual` stands in its name; how much light a channel
gives is drawn for every cell and every plate, whatever the phenotype, so the mean of a channel says nothing, which is measured beside the encoders.
Cells lie any way round, in noise of photons and camera. Two crops of a cell have its light in common, by which a network can tell cells apart without
looking at them: every channel of every cell is brought to the same mean, unless --as-they-come leaves that out. Eight plates teach, four others are
asked. A few minutes on two cores; what was stopped goes on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from outcome import options, study
from torch import Tensor

from gnothi.randomness import generator

SIDE = 48
"""Of an image in pixels; shapes below are in half sides."""
CHANNELS = ("nucleus", "membrane", "fibres", "granules", "reticulum")
PHENOTYPES = ("usual", "long nucleus", "lobed nucleus", "ruffled membrane", "parallel fibres", "granules on one side")
TRAIN, TEST = range(8), range(8, 12)
SPOTS, GRATINGS, LOBES = 14, 3, 3
PHOTONS, BACKGROUND, GAIN, OFFSET, READ = 20.0, 8.0, 8.0, 400.0, 16.0
"""Mean signal of a channel and light beside it, in photons a pixel; camera's numbers a photon, its zero and its noise."""
LEVEL = 400.0
"""Mean of a channel that was levelled, in the camera's numbers."""
SETTINGS = {
    "method": {"name": "simclr"},
    "backbone": {"name": "micro-resnet"},
    "views": {"recipe": "any-orientation", "size": SIDE, "area": [0.4, 1.0]},
}


@dataclass(frozen=True)
class Draws:
    """Uniform and normal numbers of one plate."""

    seed: int
    plate: int
    n: int

    def uniform(self, purpose: str, low: float, high: float, *shape: int) -> Tensor:
        """[n, *shape, 1, 1]: a number, or some, for each cell."""
        drawn = torch.rand(self.n, *shape, 1, 1, generator=generator(self.seed, purpose, self.plate))
        return low + (high - low) * drawn

    def angle(self, purpose: str, *shape: int) -> Tensor:
        return self.uniform(purpose, 0, 2 * math.pi, *shape)

    def normal(self, purpose: str, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator(self.seed, purpose, self.plate))


def plate(seed: int, number: int, each: int) -> tuple[Tensor, Tensor]:
    """Images [N, 5, SIDE, SIDE] uint16 and labels [N] of a plate with ``each`` cells of every phenotype."""
    labels = torch.arange(len(PHENOTYPES)).repeat(each)
    draws = Draws(seed, number, len(labels))
    planes = torch.stack(shapes(draws, labels), 1)
    planes /= planes.mean((2, 3), keepdim=True)  # from here on a phenotype is no brighter than another
    stain, uptake = draws.normal("stain", 1, len(CHANNELS), 1, 1), draws.normal("uptake", draws.n, len(CHANNELS), 1, 1)
    photons = PHOTONS * (0.25 * stain + 0.35 * uptake).exp() * planes + BACKGROUND
    seen = torch.poisson(photons, generator=generator(seed, "photons", number))
    counted = OFFSET + GAIN * seen + READ * draws.normal("camera", *planes.shape)
    return counted.round().clamp(0, 65535).to(torch.int32).to(torch.uint16), labels


def shapes(draws: Draws, labels: Tensor) -> list[Tensor]:
    """The five channels of every cell before light and noise, [N, SIDE, SIDE] each."""
    has = {name: (labels == i)[:, None, None] for i, name in enumerate(PHENOTYPES)}
    across = torch.linspace(-1, 1, SIDE)
    scale, turn = draws.uniform("scale", 0.85, 1.15), draws.angle("turn")
    y, x = ((axis - draws.uniform(f"centre {k}", -0.12, 0.12)) / scale for k, axis in enumerate((across[:, None], across[None])))
    u, v = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
    r, theta = torch.hypot(u, v), torch.atan2(v, u)

    rim = 0.72 * (1 + 0.08 * torch.cos(2 * theta + draws.angle("rim")))
    rim = rim + has["ruffled membrane"] * 0.05 * torch.cos(9 * theta + draws.angle("ruffles"))
    inside = torch.sigmoid((rim - r) / 0.04)
    membrane = torch.exp(-(((r - rim) / 0.06) ** 2))

    length = torch.where(has["long nucleus"], 1.3, 1.0)[:, None]
    away, part = (torch.where(has["lobed nucleus"], *pair)[:, None] for pair in ((0.18, 0.0), (LOBES**-0.5, 1.0)))
    lobe = (draws.angle("lobes") + torch.arange(LOBES) * 2 * math.pi / LOBES)[..., None].transpose(1, 2).reshape(draws.n, LOBES, 1, 1)
    p, q = u[:, None] - away * lobe.cos(), v[:, None] - away * lobe.sin()
    nucleus = torch.sigmoid((0.3 * part - torch.hypot(p / length, q * length)) / 0.03).amax(1)

    where = draws.angle("side", 1) + draws.uniform("granule", -1, 1, SPOTS) * torch.where(has["granules on one side"], 0.5, math.pi)[:, None]
    far = draws.uniform("distance", 0.38, 0.6, SPOTS)
    spots = torch.exp(-((u[:, None] - far * where.cos()) ** 2 + (v[:, None] - far * where.sin()) ** 2) / 0.05**2)
    granules = (spots * draws.uniform("granule's light", 0.5, 1, SPOTS)).sum(1)

    way = draws.angle("way", 1) + draws.uniform("ways", -1, 1, GRATINGS) * torch.where(has["parallel fibres"], 0.1, math.pi)[:, None]
    pitch, phase = draws.uniform("pitch", 3.5, 4.5, GRATINGS), draws.angle("phase", GRATINGS)
    waves = torch.cos(2 * math.pi * pitch * (u[:, None] * way.cos() + v[:, None] * way.sin()) + phase).sum(1)

    cloud = F.interpolate(draws.normal("cloud", draws.n, 1, SIDE // 4, SIDE // 4), SIDE, mode="bicubic")[:, 0]
    return [nucleus, membrane, inside * waves.relu(), granules, inside * (1 - nucleus) * (0.5 * cloud).exp()]


def levelled(images: Tensor) -> Tensor:
    """Every channel of every image at the same mean above the camera's zero: [N, C, H, W] uint16."""
    light = images.float() - OFFSET
    return (LEVEL * light / light.mean((2, 3), keepdim=True)).round().clamp(0, 65535).to(torch.int32).to(torch.uint16)


def main(argv: list[str] | None = None) -> None:
    """Draw the plates, train, measure."""
    parser = options(__doc__, epochs=30)
    parser.add_argument("--cells", type=int, default=40, metavar="N", help="of each phenotype on a plate, by default 40")
    parser.add_argument("--as-they-come", action="store_true", help="leave the light of each channel as it is")
    given = parser.parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    name = "microscopy_raw" if given.as_they_come else "microscopy"
    file, arrays, means = given.out / f"{name}.npz", {"classes": np.array(PHENOTYPES)}, []
    for split, plates in (("train", TRAIN), ("test", TEST)):
        drawn = [plate(0, number, given.cells) for number in plates]
        images, labels = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        groups = np.repeat([f"plate {number}" for number in plates], len(drawn[0][1]))
        means.append(images.float().mean((2, 3)).numpy())
        seen = images if given.as_they_come else levelled(images)
        arrays |= {f"{split}_images": seen.numpy(), f"{split}_labels": labels.numpy(), f"{split}_groups": groups}
    np.savez(file, **arrays)
    study(name, f"{file}@train", f"{file}@test", given, SETTINGS, {"means of the channels before levelling": means})


if __name__ == "__main__":
    main()

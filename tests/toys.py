"""Small things that behave as the contracts say: a backbone without BatchNorm, methods, views, and an objective that trains in milliseconds."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnothi.auxiliary import Auxiliary, AuxiliarySpec
from gnothi.contracts import Block, Carry, Encoding, Outputs, Step, Views, Want
from gnothi.methods import METHODS, Method
from gnothi.randomness import generator, seeded
from gnothi.training.learner import Learner
from gnothi.training.objective import Objective
from gnothi.training.optimisers import OptimiserSpec
from gnothi.training.progress import Silent
from gnothi.training.spec import TrainingSpec

NAMES = tuple(name for name, (_, kind) in METHODS.items() if kind.compares)
MULTI_CROP = tuple(name for name in NAMES if METHODS[name][1].multi_crop)
TEACHERS = ("moco", "byol", "dino")
SMALL: dict[str, dict[str, Any]] = {
    "simclr": {},
    "moco": {"predictor": 10},
    "byol": {"predictor": 10},
    "simsiam": {"predictor": 5},
    "swav": {"prototypes": 9, "queue": 12, "frozen_until": 0.2},
    "dino": {"prototypes": 11, "frozen_until": 0.2, "teacher_temperature_start": 0.03, "teacher_temperature": 0.06},
    "barlow": {},
    "vicreg": {},
}
"""Settings beside small widths that make every part of a method take part."""


class StopsAt(Silent):
    """Asks the run to stop after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def update(self, step: int, metrics: dict[str, Any] | None = None) -> None:
        if step == self.step and metrics is None:
            signal.raise_signal(signal.SIGINT)


class ToyBackbone(nn.Module):
    """Patches of 4 pixels, two residual blocks over them, LayerNorm; the same answer whatever the batch."""

    def __init__(self, channels: int = 3, width: int = 12) -> None:
        super().__init__()
        self.width, self.block_widths = width, (width, width)
        self.patches = nn.Conv2d(channels, width, 4, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)) for _ in range(2))
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor, want: Want = Want(), mask: Tensor | None = None) -> Encoding:
        grid = (images.shape[2] // 4, images.shape[3] // 4)
        x = self.patches(images).flatten(2).mT  # [B, N, D]
        if mask is not None:
            x = x * ~mask[..., None]
        blocks = {}
        for i, block in enumerate(self.blocks):
            x = x + block(x) + x.mean(1, keepdim=True)
            if i in want.blocks:
                blocks[i] = Block(x.mean(1), self.norm(x.mean(1)), x if want.patches else None, grid)
        final = self.norm(x)
        return Encoding(final.mean(1), final if want.patches else None, grid, blocks)


class NormedBackbone(nn.Module):
    """Two convolutions with BatchNorm."""

    def __init__(self, channels: int = 3, width: int = 12) -> None:
        super().__init__()
        self.width, self.block_widths = width, (width,)
        self.conv = nn.Conv2d(channels, width, 4, 4, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.deeper = nn.Conv2d(width, width, 1)

    def forward(self, images: Tensor, want: Want = Want(), mask: Tensor | None = None) -> Encoding:
        x = self.deeper(F.relu(self.bn(self.conv(images))))
        return Encoding(x.mean((2, 3)), x.flatten(2).mT if want.patches else None, (x.shape[2], x.shape[3]))


def method(name: str, *, norm: str = "none", seed: int = 0, backbone: Callable[[], nn.Module] = ToyBackbone, **settings: Any) -> Method:
    """A method of small widths in float64; teachers already differ from what they follow."""
    spec_type, method_type = METHODS[name]
    spec = spec_type(**{"hidden": 14, "out": 8, "layers": 2, "norm": norm, **SMALL[name], **settings})
    with seeded(seed, "toy"):
        made = method_type(backbone(), spec).double()
        with torch.no_grad():
            for twin in (made.slow, made.space.slow):
                for p in () if twin is None else twin.parameters():
                    p.add_(0.05 * torch.randn_like(p))
    return made


def views(b: int = 6, n_local: int = 0, *, size: int = 16, local: int = 8, seed: int = 0, dtype: torch.dtype = torch.float64) -> Views:
    """Two global crops and some local ones, of noise; boxes are fractional, so that nothing in geometry ties."""
    g, v = generator(seed, "toy views"), 2 + n_local
    images = tuple(torch.randn(b, 3, s, s, generator=g, dtype=torch.float64).to(dtype) for s in [size] * 2 + [local] * n_local)
    corner = 40 * torch.rand(v, b, 2, generator=g)
    sides = (20 + 30 * torch.rand(v, b, 2, generator=g)) * torch.tensor([1.0] * 2 + [0.4] * n_local)[:, None, None]
    flips, turns = torch.rand(v, b, generator=g) < 0.5, torch.randint(4, (v, b), generator=g)
    return Views(images, torch.cat([corner, sides], -1), flips, turns, 2, torch.randperm(100, generator=g)[:b])


def step(number: int = 3, total: int = 10, seed: int = 0) -> Step:
    return Step(seed, number, total)


def parameters(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all that a module holds."""
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def spherical(n: int, width: int, seed: int = 0) -> Tensor:
    """[n, width] float64 noise."""
    return torch.randn(n, width, generator=generator(seed, "noise"), dtype=torch.float64)


# ---- training -----------------------------------------------------------------------------------
class Nudge(Auxiliary):
    """Pulls pooled features to a learned vector, with noise it asks for, and remembers their mean."""

    name = "nudge"

    def __init__(self, method: Method, spec: AuxiliarySpec) -> None:
        super().__init__(method, spec)
        self.centre = nn.Parameter(torch.ones(method.backbone.width))
        self.register_buffer("memory", torch.zeros(method.backbone.width))
        self.memory: Tensor

    def draw(self, rows: int, step: Step) -> Tensor:
        return torch.randn(rows, generator=step.generator("nudge"))

    def forward(self, method: Method, views: Views, outputs: Outputs, step: Step) -> tuple[dict[str, Tensor], Carry]:
        pooled = outputs.online[0].encoding.pooled
        noise = views.drawn["nudge"].to(pooled.dtype)[:, None]
        return {"nudge": (pooled - self.centre + noise).square().mean()}, Carry(
            sums={"seen": pooled.detach().sum(0), "count": pooled.new_tensor(len(pooled))}
        )

    def after_step(self, method: Method, carry: Carry, step: Step) -> None:
        self.memory.lerp_(carry.sums["seen"] / carry.sums["count"], 0.1)


class Feed:
    """Batches by step number, of noise; the same step gives the same views. ``met`` lists the steps asked for."""

    def __init__(self, b: int = 8, n_local: int = 0, dtype: torch.dtype = torch.float32, part: slice = slice(None)) -> None:
        self.b, self.n_local, self.dtype, self.part = b, n_local, dtype, part
        self.met: list[int] = []

    def __call__(self, number: int) -> Views:
        self.met.append(number)
        return views(self.b, self.n_local, seed=1000 + number, dtype=self.dtype).rows(self.part)


def learner(
    objective: Objective,
    feed: Callable[[int], Views],
    *,
    total: int = 8,
    optimiser: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    **more: Any,
) -> Learner:
    """A Learner of few steps: SGD with momentum and decay, everything logged."""
    spec = TrainingSpec(**{"log_every": "3 steps", "health_every": "2 steps", "checkpoint_every": "3 steps", **(training or {})})
    rates = OptimiserSpec(**{"name": "sgd", "lr": 0.05, "weight_decay": 0.01, "warm_up": "2 steps", **(optimiser or {})})
    return Learner(objective, feed, spec=spec, optimiser=rates, total=total, per_epoch=2, seed=0, **more)


class Patterns:
    """Smooth random patterns, something to learn from: views differ by a shift, a flip, brightness, contrast and noise."""

    def __init__(self, n: int = 256, b: int = 32) -> None:
        self.images = F.interpolate(torch.randn(n, 3, 5, 5, generator=generator(0, "patterns")), (16, 16), mode="bicubic")
        self.b = b

    def sample(self) -> Tensor:
        return self.images[:, :, 2:14, 2:14]

    def __call__(self, number: int) -> Views:
        g = generator(0, "pattern views", number)
        index = torch.randint(len(self.images), (self.b,), generator=g)
        flat = torch.zeros(2, self.b)
        return Views(tuple(self._view(self.images[index], g) for _ in range(2)), torch.zeros(2, self.b, 4), flat.bool(), flat.long(), 2, index)

    def _view(self, x: Tensor, g: torch.Generator) -> Tensor:
        top, left = torch.randint(5, (2,), generator=g).tolist()
        x = x[:, :, top : top + 12, left : left + 12]
        x = torch.where(torch.rand(self.b, 1, 1, 1, generator=g) < 0.5, x.flip(3), x)
        gain, shift = 0.7 + 0.6 * torch.rand(self.b, 1, 1, 1, generator=g), 0.2 * torch.randn(self.b, 3, 1, 1, generator=g)
        return gain * x + shift + 0.1 * torch.randn(x.shape, generator=g)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two sets of tensors are the same, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

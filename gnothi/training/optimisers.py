"""Optimisers, which parameters decay, and the rates of a step."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from gnothi.contracts import Spec
from gnothi.distributed import norms, own
from gnothi.methods import Group
from gnothi.schedules import cosine, warm_up_cosine


class OptimiserSpec(Spec):
    """Optimiser and its schedules."""

    name: Literal["sgd", "adamw", "lars"] = "sgd"
    """sgd (momentum), adamw, or lars for very large batches."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate. None: by a rule of the recipe, from the batch."""
    lr_end: float = Field(default=0.0, ge=0)
    """Learning rate at the last step; half a cosine leads to it."""
    warm_up: str = "10%"
    """How long the rate rises from 0: "10 epochs", "500 steps" or "5%"."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of sgd and lars."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """Decay of weights; biases, norms and other one-dimensional parameters never decay."""
    weight_decay_end: float | None = Field(default=None, ge=0)
    """Decay at the last step, half a cosine between. None: constant."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of adamw."""
    trust: float = Field(default=0.001, gt=0)
    """Of lars: trust coefficient."""


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rates (You et al. 2017, arXiv 1708.03888), as self-supervised codes use it.

    A tensor's gradient plus decay is scaled by trust x |weights| / |gradient plus decay|; groups without decay take plain momentum steps.
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 0.001) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move all parameters that have a gradient."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            moves = [p.grad for p in params]
            if group["adapt"]:
                moves = list(torch._foreach_add(moves, params, alpha=group["weight_decay"]))
                scales = [
                    torch.where((w > 0) & (g > 0), group["trust"] * w / g, torch.ones_like(w))
                    for w, g in zip(norms(params), norms(moves), strict=True)  # of whole tensors, also where they are sharded
                ]
                torch._foreach_mul_([own(m) for m in moves], scales)
            buffers = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in params]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, moves)
            torch._foreach_add_(params, buffers, alpha=-group["lr"])


def parameter_groups(module: nn.Module, groups: tuple[Group, ...]) -> list[dict[str, Any]]:
    """Sort trainable parameters by rate and by whether they decay (more than one dimension)."""
    sorted_: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, p in module.named_parameters():
        if p.requires_grad:
            number = next((i for i, g in enumerate(groups) if fnmatch(name, g.pattern)), len(groups))
            sorted_.setdefault((number, p.ndim > 1), []).append(p)
    rates = (*groups, Group("*"))
    return [
        {"params": params, "adapt": decays, "schedule": rates[i].schedule, "scale": rates[i].scale} for (i, decays), params in sorted(sorted_.items())
    ]


def build(spec: OptimiserSpec, module: nn.Module, groups: tuple[Group, ...]) -> torch.optim.Optimizer:
    """Make the optimiser of a module."""
    params, lr = parameter_groups(module, groups), spec.lr or 0.0
    if spec.name == "adamw":
        return torch.optim.AdamW(params, lr=lr, betas=spec.betas, fused=True)
    if spec.name == "lars":
        return LARS(params, lr=lr, momentum=spec.momentum, trust=spec.trust)
    sharded = any(hasattr(p, "full_tensor") for group in params for p in group["params"])  # torch has no fused step of SGD for those
    sgd = torch.optim.SGD(params, lr=lr, momentum=spec.momentum, fused=not sharded)
    for p in (p for group in sgd.param_groups for p in group["params"]):
        # Fused steps fail where a tensor's first gradient comes later than its group's, as that of a layer frozen at first does.
        sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return sgd


def set_rates(optimiser: torch.optim.Optimizer, spec: OptimiserSpec, progress: float, warm_up: float) -> tuple[float, float]:
    """Set every group's learning rate and decay for a step.

    Args:
        optimiser: as ``build`` made it.
        spec: its settings.
        progress: in [0, 1).
        warm_up: part of training in which the rate rises.

    Returns:
        The recipe's learning rate and decay in this step.
    """
    peak = spec.lr or 0.0
    lr = warm_up_cosine(progress, warm_up, peak, spec.lr_end)
    end = spec.weight_decay if spec.weight_decay_end is None else spec.weight_decay_end
    decay = cosine(progress, spec.weight_decay, end)
    for group in optimiser.param_groups:
        group["lr"] = group["scale"] * (peak if group["schedule"] == "constant" else lr)
        group["weight_decay"] = decay if group["adapt"] else 0.0
    return lr, decay

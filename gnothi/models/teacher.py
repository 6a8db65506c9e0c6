"""Slow twins: a copy of a network that follows it, and what happens to normalisation statistics in extra passes.

Rule for buffers: a teacher stays in training mode, normalises by its own batches and keeps its own running statistics (as DINO does);
only parameters follow.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn

Statistics = Literal["update", "keep"]


def twin(module: nn.Module) -> nn.Module:
    """A copy that shares no storage and takes no gradient."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Move every parameter: target <- momentum x target + (1 - momentum) x online."""
    torch._foreach_lerp_(list(target.parameters()), [p.detach() for p in online.parameters()], 1 - momentum)


@contextlib.contextmanager
def batch_statistics(module: nn.Module, statistics: Statistics) -> Iterator[None]:
    """Choose what a pass in training mode does to BatchNorm's running statistics.

    "update" is the usual; "keep" normalises by the batch and leaves the running statistics, which evaluation uses, alone.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] if statistics == "keep" else []
    norms = [m for m in norms if m.track_running_stats]
    for m in norms:
        m.track_running_stats = False
    try:
        yield
    finally:
        for m in norms:
            m.track_running_stats = True

"""The blocks that a network is made of, which may compute their activations twice rather than keep them, and what a pass keeps."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from gnothi.contracts import SettingError

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""What only holds others: a network may call its members one by one, past the container."""


def blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks of a network, in order: of the kind of module that it is made of, and where that is a stage, the stage's blocks.

    A kind is a class of which two or more stand in rows and hold more than a quarter of the parameters, or more than half wherever they stand; of
    several, the one of fewest modules. One of them is taken apart in the same way where it holds a row of such a kind. So a ViT's transformer blocks,
    a ResNet's residual blocks and a Swin's blocks within its stages are found, whoever wrote them.

    Returns:
        Blocks of which none holds another; none where a network is a plain row of layers, such as AlexNet.
    """
    return [block for m in _kind(network, _rows(network), 4) or _kind(network, network.modules(), 2) for block in _inside(m)]


def _inside(block: nn.Module) -> list[nn.Module]:
    return [inner for m in _kind(block, _rows(block), 2) for inner in _inside(m)] or [block]


def _rows(module: nn.Module) -> Iterator[nn.Module]:
    return (member for m in module.modules() if isinstance(m, CONTAINERS) for member in m.children())


def _kind(network: nn.Module, among: Iterable[nn.Module], part: int) -> list[nn.Module]:
    """Two or more modules of one class, none inside another, that hold more than a ``part``-th of a network's parameters."""
    kinds: dict[type[nn.Module], list[nn.Module]] = defaultdict(list)
    for m in among:
        if m is not network and not isinstance(m, CONTAINERS) and any(True for _ in m.children()):
            kinds[type(m)].append(m)
    found = [row for row in map(_outermost, kinds.values()) if len(row) > 1 and part * sum(map(_size, row)) > _size(network)]
    return min(found, key=lambda row: (len(row), -sum(map(_size, row))), default=[])


def _outermost(found: list[nn.Module]) -> list[nn.Module]:
    inside = {child for m in found for child in m.modules() if child is not m}
    return [m for m in found if m not in inside]


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


class _Recomputing(nn.Module):
    """Before a block's own class: a pass that will have a gradient keeps the block's input only."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's own answer."""
        plain = super().forward
        if not (self.training and torch.is_grad_enabled()):
            return plain(*args, **kwargs)
        norms = [(m, m.track_running_stats) for m in self.modules() if isinstance(m, _BatchNorm)]
        return checkpoint(plain, *args, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _once_more(norms)), **kwargs)


@contextlib.contextmanager
def _once_more(norms: list[tuple[_BatchNorm, bool]]) -> Iterator[None]:
    """Inside, norms track as they did in the first pass; afterwards they are as before, for a batch counts once in the running statistics."""
    before = [(m, m.track_running_stats, [(b, b.clone()) for b in m.buffers()]) for m, _ in norms]
    for m, tracked in norms:
        m.track_running_stats = tracked
    try:
        yield
    finally:
        for m, tracked, buffers in before:
            m.track_running_stats = tracked
            for buffer, value in buffers:
                buffer.copy_(value)


def recompute(network: nn.Module) -> None:
    """Let every block, in place, keep its input only and compute what lies inside once more for the gradient (Chen et al., arXiv 1604.06174).

    Loss, gradients, random draws and running statistics stay what they were, bit for bit; a step costs one more forward pass of the blocks.

    Raises:
        SettingError: the network has no blocks.
    """
    found = blocks(network)
    if not found:
        kind = getattr(network, "name", type(getattr(network, "net", network)).__name__)
        raise SettingError(f"training.recompute must be false for {kind}, a plain row of layers without blocks; got true")
    for block in found:
        own = type(block)
        block.__class__ = type(own.__name__, (_Recomputing, own), {})


@contextlib.contextmanager
def activations(module: nn.Module) -> Iterator[Callable[[], int]]:
    """Count what passes inside keep for their gradients besides the parameters: gives a function that says how many bytes so far."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        kept.setdefault(x.untyped_storage().data_ptr(), x.detach())
        return x.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        yield lambda: sum(x.untyped_storage().nbytes() for place, x in kept.items() if place not in own)

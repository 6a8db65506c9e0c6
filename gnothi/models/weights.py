"""A backbone's weights: out in timm's key layout, in with every difference named, and what the network costs."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gnothi.contracts import SettingError

MASK_TOKEN = "mask_token"


def weights(backbone: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a backbone by the names that timm gives them; not the token for hidden patches, which timm does not have."""
    inner: Any = getattr(backbone, "net", backbone)
    return {k: v for k, v in inner.state_dict().items() if inner is not backbone or k != MASK_TOKEN}


@torch.no_grad()
def initialise(backbone: nn.Module, state: dict[str, Tensor]) -> tuple[str, ...]:
    """Copy weights into a backbone, in place. Names must agree one for one, and shapes too but for two documented adaptations.

    - Another number of input channels: the first convolution's weights are summed over its channels for one channel, else repeated in turn and scaled
      by old over new, so that a grey image gives the same response (timm's rule).
    - Another grid of an absolute position embedding (``pos_embed``): resampled, bicubic and antialiased; the leading tokens' rows are kept.

    Args:
        backbone: what ``build`` or ``adopt`` made.
        state: weights by name, as ``weights`` gives them. A ``mask_token`` is copied where both sides have one.

    Returns:
        A line for each adaptation.

    Raises:
        SettingError: names or shapes differ otherwise; the message names them.
    """
    own = weights(backbone)
    given = {k: v for k, v in state.items() if k != MASK_TOKEN or k in own}
    _same_names(own, given)
    first = next((k for k, v in own.items() if v.ndim == 4), None)
    fitting, report = dict(given), []
    for name, target in own.items():
        if given[name].shape != target.shape:
            fitting[name], line = _adapt(name, given[name], target, name == first)
            report.append(line)
    for name, target in own.items():  # only now, so that a refusal leaves the backbone as it was
        target.copy_(fitting[name])
    token, given_token = getattr(backbone, MASK_TOKEN, None), state.get(MASK_TOKEN)
    if token is not None and given_token is not None and token.numel() == given_token.numel():
        token.copy_(given_token.view_as(token))
    return tuple(report)


def _same_names(own: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    missing, strange = [k for k in own if k not in given], [k for k in given if k not in own]
    if missing or strange:
        said = [f"{len(names)} {what}, such as {names[0]}" for what, names in (("are missing", missing), ("are not the network's", strange)) if names]
        raise SettingError(f"the initial weights are of another architecture than backbone.name: {' and '.join(said)}, of {len(own)}")


def _adapt(name: str, value: Tensor, target: Tensor, first: bool) -> tuple[Tensor, str]:
    a, b = tuple(value.shape), tuple(target.shape)
    if first and len(a) == 4 and (a[0], *a[2:]) == (b[0], *b[2:]):
        return input_channels(value, b[1]), f"{name}: {a[1]} input channels made {b[1]}"
    if name == "pos_embed" and len(a) == len(b) == 3 and a[2] == b[2]:
        resampled = positions(value, b[1])
        if resampled is not None:
            return resampled, f"{name}: {a[1]} positions resampled to {b[1]}"
    raise SettingError(f"the initial weights do not fit backbone.name: {name} is {list(a)}, the network's is {list(b)}")


def input_channels(weight: Tensor, channels: int) -> Tensor:
    """A first convolution's weight [D, C, h, w] for another number of channels: [D, channels, h, w]."""
    if channels == 1:
        return weight.sum(1, keepdim=True)
    order = torch.arange(channels, device=weight.device) % weight.shape[1]
    return weight[:, order] * (weight.shape[1] / channels)


def positions(embedding: Tensor, count: int) -> Tensor | None:
    """A position embedding [1, P + n*n, D] for ``count`` positions, its P leading tokens kept; None where no P up to 5 makes both grids square."""
    for leading in range(6):  # none, a class token, a distillation token, up to four registers
        old, new = (embedding.shape[1] - leading) ** 0.5, (count - leading) ** 0.5 if count > leading else 0.5
        if old >= 1 and old == int(old) and new == int(new):
            grid = embedding[:, leading:].mT.unflatten(2, (int(old), int(old)))
            grid = F.interpolate(grid, (int(new), int(new)), mode="bicubic", antialias=True)
            return torch.cat([embedding[:, :leading], grid.flatten(2).mT], 1)
    return None


def parameters(backbone: nn.Module) -> int:
    """How many numbers a backbone learns."""
    return sum(p.numel() for p in backbone.parameters() if p.requires_grad)


@torch.no_grad()
def flops(backbone: nn.Module, channels: int, size: int) -> int:
    """Floating-point operations of one forward pass of one crop; a multiplication and an addition count as two.

    Counts convolutions, matrix products and attention, measured on a copy, so that nothing moves. A training step takes about three times as many.
    """
    copied = copy.deepcopy(backbone).eval()
    device = next(copied.parameters()).device
    with FlopCounterMode(display=False) as counter:
        copied(torch.zeros(1, channels, size, size, device=device))
    total: int = counter.get_total_flops()
    return total

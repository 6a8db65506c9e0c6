"""What it costs to reach each block of a network, and the picture of accuracy by depth."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from gnothi.contracts import SettingError, Want
from gnothi.evaluate.result import Result
from gnothi.files import replace_file

PICTURES = (".svg", ".png")
"""What a plot may be written as."""


# ---- cost ---------------------------------------------------------------------------------------
class _Needs(TorchDispatchMode):
    """Which of the operations so far each tensor needs, and what they cost."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no types
        self.costs: list[int] = []
        self.needs: dict[int, int] = {}
        """A bit an operation, by the tensor's identity."""
        self.alive: list[Tensor] = []
        """Identities are reused otherwise."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operation = func._overloadpacket
        if operation not in flop_registry and func is not torch.ops.prim.device.default:
            with self:
                parts = func.decompose(*args, **kwargs)
                if parts is not NotImplemented:
                    return parts
        out = func(*args, **kwargs)
        needs = 0
        for x in tree_leaves((args, kwargs)):
            needs |= self.needs.get(id(x), 0)
        if operation in flop_registry:
            needs |= 1 << len(self.costs)
            self.costs.append(flop_registry[operation](*args, **kwargs, out_val=out))
        for x in (x for x in tree_leaves(out) if isinstance(x, Tensor)):
            self.needs[id(x)] = needs
            self.alive.append(x)
        return out

    def cost(self, *tensors: Tensor) -> int:
        """Operations that any of these needs, each counted once."""
        needs = 0
        for x in tensors:
            needs |= self.needs.get(id(x), 0)
        return sum(cost for i, cost in enumerate(self.costs) if needs >> i & 1)


@torch.no_grad()
def flops_to(backbone: nn.Module, channels: int, size: int) -> tuple[int, ...]:
    """Floating-point operations that the pooled vector after each block needs, of one crop; counted as ``models.backbone.flops`` counts them.

    Args:
        backbone: of any kind that gives its blocks.
        channels: of the images.
        size: side of the crop, in pixels.

    Returns:
        One number a block, rising.
    """
    copied: Any = copy.deepcopy(backbone).eval()
    numbers = tuple(range(len(copied.block_widths)))
    with _Needs() as needs:
        encoding = copied(torch.zeros(1, channels, size, size, device=next(copied.parameters()).device), Want(blocks=numbers))
    return tuple(needs.cost(encoding.blocks[n].pooled, encoding.blocks[n].final) for n in numbers)


# ---- picture ------------------------------------------------------------------------------------
def check_picture(path: str | Path) -> Path:
    """The file of a plot; SettingError where its kind cannot be written."""
    path = Path(path)
    if path.suffix.lower() not in PICTURES:
        raise SettingError(f"--plot must be a file that ends in {' or '.join(PICTURES)}, got {path.name}")
    return path


def plot(results: Sequence[Result], path: str | Path) -> None:
    """Write accuracy by block and by FLOPs, a line an encoder with its intervals; vectors before the final norm are dashed where both were measured.

    Args:
        results: as ``layers`` gave them.
        path: ends in .svg or .png.
    """
    import matplotlib
    from matplotlib.figure import Figure

    path = check_picture(path)
    metrics, encoders = list(dict.fromkeys(r.metric for r in results)), list(dict.fromkeys(r.encoder for r in results))
    figure = Figure(figsize=(10, 3.6 * len(metrics)), layout="constrained")
    axes = figure.subplots(len(metrics), 2, squeeze=False)
    for row, metric in zip(axes, metrics, strict=True):
        for axis, key in zip(row, ("block", "flops"), strict=True):
            for number, encoder in enumerate(encoders):
                _lines(axis, [r for r in results if (r.metric, r.encoder) == (metric, encoder)], key, f"C{number % 10}")
            axis.set_xlabel("block, from 0" if key == "block" else "GFLOPs of a crop")
            axis.set_ylabel(f"{metric} accuracy")
            axis.grid(alpha=0.3)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    kind = path.suffix.lower()[1:]
    with matplotlib.rc_context({"svg.hashsalt": "gnothi"}):
        replace_file(path, lambda temporary: figure.savefig(temporary, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None))


def _lines(axis: Any, results: list[Result], key: str, colour: str) -> None:
    whole = {r.details["block"]: r for r in results} | {r.details["block"]: r for r in results if r.details["features"] == "final"}
    before = [
        r for r in results if r.details["features"] == "pooled" and any(r.details["block"] == o.details["block"] and r is not o for o in results)
    ]
    for chosen, style in ((list(whole.values()), "-"), (before, "--")):
        if chosen:
            at = [r.details[key] / (1 if key == "block" else 1e9) for r in chosen]
            label = chosen[0].encoder + (", before the norm" if style == "--" else "")
            axis.plot(at, [r.value for r in chosen], style, color=colour, marker="o" if style == "-" else None, markersize=3, label=label)
            if style == "-":
                axis.fill_between(at, [r.low for r in chosen], [r.high for r in chosen], color=colour, alpha=0.15, linewidth=0)

"""Everything that the next step depends on, as tensors by name, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gnothi.contracts import RunError
from gnothi.distributed import full, gather_objects, rank, shard_like

OPTIMISER, WINDOW = "optimiser.", "window."
"""How names begin that are not the objective's own."""


def of(objective: nn.Module, optimiser: torch.optim.Optimizer, window: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameters, teachers and memories; the optimiser's buffers by the names of their parameters; sums since the last line of metrics.

    Where they are sharded all processes must ask, and the first one gets them whole.
    """
    names: dict[Tensor, str] = {p: n for n, p in objective.named_parameters()}
    tensors = {name: _whole(value) for name, value in objective.state_dict().items()}
    for p, values in optimiser.state.items():
        tensors |= {f"{OPTIMISER}{key}.{names[p]}": _whole(value) for key, value in values.items() if value is not None}
    return tensors | {f"{WINDOW}{name}": value for name, value in window.items()}


def _whole(value: Tensor) -> Tensor:
    """One at a time, and off the device: no process ever has room for all that is sharded."""
    whole = full(value)
    return whole if whole is value else whole.cpu() if rank() == 0 else whole[:0].cpu()


def broken(batches: Any) -> dict[str, tuple[str, int]]:
    """What was wrong with each image that could not be read, and how often it was replaced, by any process; all must ask."""
    found: dict[str, tuple[str, int]] = {}
    for met in gather_objects(getattr(batches, "broken", {})):
        for name, (message, count) in met.items():
            found[name] = (message, count + found.get(name, ("", 0))[1])
    return found


def restore(tensors: dict[str, Tensor], objective: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Put back what ``of`` gave.

    Returns:
        The sums since the last line of metrics.

    Raises:
        RunError: the tensors are another network's.
    """
    try:
        held = objective.state_dict()
        own = {k: shard_like(v, held.get(k, v)) for k, v in tensors.items() if not k.startswith((OPTIMISER, WINDOW))}
        objective.load_state_dict(own)
        for name, p in objective.named_parameters():
            for key in ("momentum_buffer", "step", "exp_avg", "exp_avg_sq"):
                if (value := tensors.get(f"{OPTIMISER}{key}.{name}")) is not None:
                    # On the parameter's device and in its own memory format; fused optimisers ask for both.
                    optimiser.state[p][key] = value.to(p.device) if key == "step" else torch.empty_like(p).copy_(shard_like(value, p))
    except RuntimeError as error:
        raise RunError(f"the checkpoint is another network's: {' '.join(str(error).split())[:160]}") from None
    device = next(objective.parameters()).device
    return {k.removeprefix(WINDOW): v.to(device) for k, v in tensors.items() if k.startswith(WINDOW)}

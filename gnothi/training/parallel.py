"""What an objective is wrapped in: recomputation, compilation, and DDP or shards with BatchNorm over all processes."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gnothi.contracts import SettingError
from gnothi.distributed import world
from gnothi.models.batchnorm import synchronise
from gnothi.models.blocks import blocks, recompute
from gnothi.training.objective import Objective
from gnothi.training.spec import TrainingSpec


def wrap(objective: Objective, spec: TrainingSpec) -> nn.Module:
    """The module that the loop calls: the objective itself on one process, and where it is sharded, which replaces its parameters.

    Raises:
        SettingError: the backbone has no blocks to recompute, or a parameter cannot be divided.
    """
    if spec.recompute:
        recompute(objective.method.backbone)
    if spec.compile:
        for m in (objective.method.backbone, objective.method.slow):
            if m is not None:
                m.compile()
    if world() == 1:
        return objective
    synchronise(objective, fused=next(objective.parameters()).is_cuda)  # the auxiliaries' heads too
    if spec.parallel == "fsdp":
        _shard(objective)
        return objective
    # Buffers are the same on every process already; torch renamed the switch that says so.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    switch = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DistributedDataParallel(objective, gradient_as_bucket_view=True, **{switch: False})  # type: ignore[arg-type]


# ---- shards -------------------------------------------------------------------------------------
def _shard(objective: Objective) -> None:
    """Divide all parameters among the processes, in place: each block of the networks is gathered when it is met, the rest with the objective."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    objective.to(memory_format=torch.contiguous_format)  # no other can be divided
    mesh = init_device_mesh(next(objective.parameters()).device.type, (world(),))
    try:
        for network in (objective.method.backbone, objective.method.slow):
            for block in [] if network is None else blocks(network):
                fully_shard(block, mesh=mesh)
        fully_shard(objective, mesh=mesh)
        _parts(objective)[0]._get_fsdp_state()._lazy_init()  # now: what is measured before the first step would make itself the root
    except (ValueError, NotImplementedError) as error:
        raise SettingError(f"training.parallel must be ddp for such a network: {' '.join(str(error).split())[:160]}; got fsdp") from None


def _parts(module: nn.Module) -> list[Any]:
    """What is gathered together: the objective first, then its blocks; none where nothing is sharded."""
    return [m for m in module.modules() if hasattr(m, "_get_fsdp_state")]


@contextlib.contextmanager
def whole(objective: Objective) -> Iterator[None]:
    """Inside, every process has all parameters, to look at and not to change; all must enter, and then each may do what it likes."""
    parts = _parts(objective)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not objective, recurse=False)
            part.reshard()


@torch.no_grad()
def fill(fresh: nn.Module, network: nn.Module) -> nn.Module:
    """Give a network just built the weights and statistics of one of its kind, which may be sharded and ``whole``, and so cannot be copied."""
    for new, old in zip(chain(fresh.parameters(), fresh.buffers()), chain(network.parameters(), network.buffers()), strict=True):
        new.copy_(old)
    return fresh

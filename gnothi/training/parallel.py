"""What an objective is wrapped in: recomputation, compilation, and DDP with BatchNorm over all processes."""

from __future__ import annotations

import inspect

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gnothi.distributed import world
from gnothi.models.batchnorm import synchronise
from gnothi.models.blocks import recompute
from gnothi.training.objective import Objective
from gnothi.training.spec import TrainingSpec


def wrap(objective: Objective, spec: TrainingSpec) -> nn.Module:
    """The module that the loop calls: the objective itself on one process.

    Raises:
        SettingError: the backbone has no blocks to recompute.
    """
    if spec.recompute:
        recompute(objective.method.backbone)
    if spec.compile:
        for m in (objective.method.backbone, objective.method.slow):
            if m is not None:
                m.compile()
    if world() == 1:
        return objective
    if next(objective.parameters()).is_cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(objective)  # in place, and the auxiliaries' heads too
    else:
        synchronise(objective)
    # Buffers are the same on every process already; torch renamed the switch that says so.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    switch = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DistributedDataParallel(objective, **{switch: False})  # type: ignore[arg-type]

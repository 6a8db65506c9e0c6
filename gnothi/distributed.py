"""Devices and processes: start, rank, a gather whose gradient is exact, means. One process is the plain case of everything here."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gnothi.contracts import Carry, SettingError


def device_of(name: str | None) -> torch.device:
    """A device by name (cpu, cuda, cuda:1, mps); by default CUDA where there is one.

    Raises:
        SettingError: this machine does not have it.
    """
    have = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *(["mps"] if torch.backends.mps.is_available() else [])]
    if name is not None and name not in (*have, "cuda" if "cuda:0" in have else "cpu"):
        raise SettingError(f"--device {name}: no such device here; this machine has {', '.join(have)}")
    return torch.device(name or ("cuda" if "cuda:0" in have else "cpu"))


def start(device: torch.device) -> None:
    """Join the processes that ``torchrun`` started; nothing to do for a plain process."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def stop() -> None:
    """Leave the group of processes, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is."""
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    """Wait for all processes."""
    if world() > 1:
        dist.barrier()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # Every process computes the loss of all rows, so the gradient of a row is the sum of what all processes say of it.
        # DDP then takes the mean over processes, which makes it exactly the gradient of one process with all rows.
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        n = grad.shape[0] // world()
        return grad[rank() * n : (rank() + 1) * n]


def gather(x: Tensor) -> Tensor:
    """Rows of all processes, by rank: [n, ...] -> [world * n, ...], with the exact gradient."""
    return x if world() == 1 else _Gather.apply(x)


def mean(x: Tensor) -> Tensor:
    """Mean over processes, without gradient."""
    if world() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / world()


def merge(carry: Carry) -> Carry:
    """Sums added and rows concatenated over processes, the same on each."""
    if world() == 1:
        return carry
    sums = {k: v.clone() for k, v in carry.sums.items()}
    for v in sums.values():
        dist.all_reduce(v)
    return Carry(sums, {k: gather(v) for k, v in carry.rows.items()})


def gather_objects(value: Any) -> list[Any]:
    """A small plain value (dicts, lists, numbers, text) of every process, by rank."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values

"""BatchNorm whose statistics are those of all processes, on any device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gnothi.distributed import world


class _MeanOverProcesses(torch.autograd.Function):
    """Mean over processes. Each process has a loss of its own, so the gradient is the mean of all processes' gradients too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous().clone()
        dist.all_reduce(x)
        return x / world()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        return grad / world()


class SyncBatchNorm(_BatchNorm):
    """BatchNorm over the joint batch of all processes, which have equally many rows each. [B, C, ...] -> same.

    torch's own works on CUDA only.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; then what timm's BatchNormAct2d carries: dropout and activation."""
        x = self._synchronised(input) if self.training and world() > 1 else super().forward(input)
        for name in ("drop", "act"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x

    def _synchronised(self, half: Tensor) -> Tensor:
        input = half.float() if half.dtype in (torch.bfloat16, torch.float16) else half  # statistics are too fine for less
        axes = [0, *range(2, input.ndim)]
        shape = [1, -1, *[1] * (input.ndim - 2)]
        mean: Tensor = _MeanOverProcesses.apply(input.mean(axes))
        centred = input - mean.view(shape)  # first the mean, then the deviations: their squares would cancel in float32
        var: Tensor = _MeanOverProcesses.apply(centred.square().mean(axes))
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            n = input.numel() // input.shape[1] * world()
            with torch.no_grad():
                self.running_mean.lerp_(mean.detach(), self.momentum or 0.1)
                self.running_var.lerp_(var.detach() * n / (n - 1), self.momentum or 0.1)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
        scale = (var + self.eps).rsqrt()
        if not self.affine:
            return (centred * scale.view(shape)).to(half.dtype)
        return (centred * (scale * self.weight).view(shape) + self.bias.view(shape)).to(half.dtype)


def synchronise(module: nn.Module) -> None:
    """Turn every BatchNorm inside a module into one over all processes, in place; names, weights and statistics stay."""
    for m in module.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) and not isinstance(m, SyncBatchNorm):
            m.__class__ = SyncBatchNorm  # type: ignore[assignment]  # same attributes, another forward


def has_statistics(network: nn.Module) -> bool:
    """Whether there is a BatchNorm with running statistics."""
    return bool(_running(network))


def _running(network: nn.Module) -> list[_BatchNorm]:
    return [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


@torch.no_grad()
def recount(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Take the running statistics anew, in place: the mean over batches of what each batch says; all else is in evaluation mode meanwhile.

    Evaluation shows whole images, training shows crops with other colours, and the statistics of those lie beside what evaluation meets
    (Touvron et al., arXiv 1906.06423, section 3.2).

    Args:
        network: takes [B, C, H, W].
        batches: [B, C, H, W] each, of equally many images.
    """
    norms = _running(network)
    modes, momenta = {m: m.training for m in network.modules()}, [m.momentum for m in norms]
    network.eval()
    for m in norms:
        m.reset_running_stats()
        m.train()
    for i, images in enumerate(batches):
        for m in norms:
            m.momentum = 1 / (i + 1)
        network(images)
    for module, training in modes.items():
        module.training = training
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum

"""BatchNorm whose statistics are those of all processes, on any device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gnothi.distributed import world


class _Normalised(torch.autograd.Function):
    """Of rows here, by statistics of all processes' rows: (x - mean) / sqrt(var + eps) * weight + bias. One exchange each way, and only x is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt())
        ctx.shifts = bias is not None
        return F.batch_norm(x, mean, var, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # Ioffe and Szegedy, arXiv 1502.03167, section 3. Each process has a loss of its own, so what comes from others is a mean over processes too.
        (g,), (x, weight, mean, scale) = grads, ctx.saved_tensors
        axes, shape = _axes(x)
        fine, centred = _fine(g), _fine(x) - mean.view(shape)
        total, along = fine.sum(axes), (fine * centred).sum(axes) * scale
        joint = torch.stack([total, along]) / (x.numel() // x.shape[1] * world())
        dist.all_reduce(joint)
        gain = scale if weight is None else scale * weight
        back = centred.mul_((-gain * scale * joint[1]).view(shape)).addcmul_(fine, gain.view(shape)).sub_((gain * joint[0]).view(shape))
        return back.to(x.dtype), None if weight is None else along, total if ctx.shifts else None, None, None, None


def _axes(x: Tensor) -> tuple[list[int], list[int]]:
    """All axes but the channels', and the shape of a number a channel beside such a tensor."""
    return [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]


def _fine(x: Tensor) -> Tensor:
    """Statistics are too fine for less than float32."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class SyncBatchNorm(_BatchNorm):
    """BatchNorm over the joint batch of all processes, which have equally many rows each. [B, C, ...] -> same.

    torch's own works on CUDA only, and forgets the activation that timm puts into a BatchNorm.
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

    def _synchronised(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            var, mean = torch.var_mean(_fine(x), _axes(x)[0], correction=0)
            every = [torch.empty(2, len(mean), dtype=mean.dtype, device=mean.device) for _ in range(world())]
            dist.all_gather(every, torch.stack([mean, var]))
            means, variances = torch.stack(every).unbind(1)
            mean = means.mean(0)
            var = (variances + (means - mean).square()).mean(0)  # never a difference of squares, which would cancel in float32
            if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
                n = x.numel() // x.shape[1] * world()
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
                share = 1 / float(self.num_batches_tracked or 1) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(var * n / (n - 1), share)
        normalised: Tensor = _Normalised.apply(x, self.weight, self.bias, mean, var, self.eps)
        return normalised


def synchronise(module: nn.Module, *, fused: bool = False) -> None:
    """Turn every BatchNorm inside a module into one over all processes, in place; names, weights and statistics stay.

    Args:
        module: a network, or several.
        fused: take torch's own, whose kernels are fused, for those that do nothing else; it works on CUDA only.
    """
    for m in module.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) and not isinstance(m, SyncBatchNorm):
            if fused and type(m) in (nn.BatchNorm1d, nn.BatchNorm2d):
                m.__class__, m.process_group = nn.SyncBatchNorm, None  # type: ignore[assignment]
            else:
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

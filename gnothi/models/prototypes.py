"""Cross-entropy with a teacher's distribution over many prototypes, without ever holding the logits.

With logits s_i = W z_i and a target p_j of the teacher, the loss of row i is -sum_k p_jk log softmax(s_i / t)_k = lse(s_i / t) - <z_i, W^T p_j> / t,
for p_j sums to 1. The first part is a number a row. The second is a product of short vectors: W^T p_j is as wide as a projection, and serves all rows
that are matched with j. Both are sums over prototypes, taken a chunk at a time; the backward pass makes the chunks once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CHUNK = 1 << 22
"""Logits that are held at a time: 16 MiB in float32."""


def lse(rows: Tensor, prototypes: Tensor, temperature: float) -> Tensor:
    """Logarithm of the sum of exponentials of a row's logits over the temperature.

    Args:
        rows: [N, P].
        prototypes: [K, P].
        temperature: positive.

    Returns:
        [N]; differentiable in rows and prototypes.
    """
    sums: Tensor = _LogSumExp.apply(rows, prototypes, temperature)
    return sums


def expected(rows: Tensor, own: Tensor, centre: Tensor, temperature: float, prototypes: Tensor) -> Tensor:
    """Mean prototype under each row's distribution, softmax((own row - centre) / temperature).

    Args:
        rows: [M, P] of the teacher; no gradient.
        own: [K, P] the teacher's prototypes; no gradient.
        centre: [K]; no gradient.
        temperature: positive.
        prototypes: [K, P] that are averaged, the student's; differentiable.

    Returns:
        [M, P].
    """
    means: Tensor = _Expected.apply(rows.detach(), own.detach(), centre, temperature, prototypes)
    return means


def _chunks(rows: int, prototypes: int) -> Iterator[slice]:
    step = max(1, CHUNK // max(rows, 1))
    return (slice(i, i + step) for i in range(0, prototypes, step))


def _lse(rows: Tensor, prototypes: Tensor, temperature: float, centre: Tensor | None = None) -> Tensor:
    total = rows.new_full((len(rows),), -torch.inf)
    for part in _chunks(len(rows), len(prototypes)):
        total = torch.logaddexp(total, _scores(rows, prototypes, temperature, centre, part).logsumexp(1))
    return total


def _scores(rows: Tensor, prototypes: Tensor, temperature: float, centre: Tensor | None, part: slice) -> Tensor:
    scores = rows @ prototypes[part].T  # [N, chunk]
    return (scores if centre is None else scores.sub_(centre[part])).div_(temperature)


def _shares(rows: Tensor, prototypes: Tensor, temperature: float, centre: Tensor | None, total: Tensor, part: slice) -> Tensor:
    """A chunk of the softmax, [N, chunk]."""
    return _scores(rows, prototypes, temperature, centre, part).sub_(total[:, None]).exp_()


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, prototypes: Tensor, temperature: float) -> Tensor:
        total = _lse(rows, prototypes, temperature)
        ctx.save_for_backward(rows, prototypes, total)
        ctx.temperature = temperature
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, prototypes, total = ctx.saved_tensors
        to_rows, to_prototypes = torch.zeros_like(rows), torch.zeros_like(prototypes)
        scaled = grads[0][:, None] / ctx.temperature  # [N, 1]
        for part in _chunks(len(rows), len(prototypes)):
            share = _shares(rows, prototypes, ctx.temperature, None, total, part).mul_(scaled)
            to_rows.addmm_(share, prototypes[part])
            to_prototypes[part] = share.T @ rows
        return to_rows, to_prototypes, None


class _Expected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, own: Tensor, centre: Tensor, temperature: float, prototypes: Tensor) -> Tensor:
        total = _lse(rows, own, temperature, centre)
        mean = torch.zeros_like(rows)
        for part in _chunks(len(rows), len(own)):
            mean.addmm_(_shares(rows, own, temperature, centre, total, part), prototypes[part])
        # The teacher moves in place after the step, but before that the backward pass needs it once more.
        ctx.save_for_backward(rows, own, centre, total)
        ctx.temperature = temperature
        return mean

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None, None, Tensor]:
        rows, own, centre, total = ctx.saved_tensors
        to_prototypes = torch.empty_like(own)
        for part in _chunks(len(rows), len(own)):
            to_prototypes[part] = _shares(rows, own, ctx.temperature, centre, total, part).T @ grads[0]
        return None, None, None, None, to_prototypes

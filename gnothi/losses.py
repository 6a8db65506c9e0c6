"""Loss functions: tensors in, scalars out. No state, no collective: who needs the rows of other processes gathers them first.

Functions named ``..._rows`` give one value a row; the others their mean over rows. Where cosine is meant, rows are normalised inside.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def weighted_mean(rows: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over all N rows of weight x row: rows of weight 0 count as 0, so nothing is ever divided by the number of valid rows.

    Args:
        rows: [N].
        weight: [N] or None for ones.
    """
    return rows.mean() if weight is None else (rows * weight).mean()


def contrast_rows(
    queries: Tensor, candidates: Tensor, partner: Tensor, temperature: float, exclude: Tensor | None = None, *, decoupled: bool = False
) -> Tensor:
    """How badly each query finds its partner among all candidates.

    Args:
        queries: [N, P], any scale.
        candidates: [M, P], of unit length.
        partner: [N] which candidate is a query's partner.
        temperature: positive softmax temperature.
        exclude: [N] a candidate that is no candidate for a query (itself), or None.
        decoupled: leave the partner out of the sum over candidates (DCL, Yeh et al., arXiv 2110.06848, eq. 5), which may then be negative.

    Returns:
        [N] cross-entropy in nats.
    """
    logits = F.normalize(queries, dim=-1) @ candidates.T / temperature  # [N, M]
    if exclude is not None:
        logits = logits.scatter(1, exclude[:, None], -math.inf)
    if decoupled:
        return logits.scatter(1, partner[:, None], -math.inf).logsumexp(1) - logits.gather(1, partner[:, None]).squeeze(1)
    return F.cross_entropy(logits, partner, reduction="none")


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Contrast every row with its partner in the other view (SimCLR, arXiv 2002.05709, eq. 1).

    Args:
        a: [N, P] projections of view one, any scale.
        b: [N, P] projections of view two; row i of ``a`` and row i of ``b`` are partners.
        temperature: positive softmax temperature.

    Returns:
        [] mean over the 2N rows, in nats; log(2N - 1) when all rows are equal.
    """
    rows = torch.cat([a, b])  # [2N, P]
    own = torch.arange(len(rows), device=rows.device)
    return contrast_rows(rows, F.normalize(rows, dim=-1), own.roll(len(a)), temperature, exclude=own).mean()


def cosine_rows(predictions: Tensor, targets: Tensor) -> Tensor:
    """Cosine of each prediction with its target: [N, P], [N, P] -> [N]."""
    return (F.normalize(predictions, dim=-1) * F.normalize(targets, dim=-1)).sum(-1)


def negative_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """Negative mean cosine of rows (SimSiam, arXiv 2011.10566, eq. 1): -1 at agreement. [N, P], [N, P] -> []."""
    return -cosine_rows(predictions, targets).mean()


def assignment_rows(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of assignments.

    Args:
        logits: [N, K] scores of the learner.
        targets: [N, K] distributions; rows sum to 1.
        temperature: positive, divides the logits.

    Returns:
        [N] in nats; log K where either side is uniform.
    """
    return -(targets * F.log_softmax(logits / temperature, dim=-1)).sum(-1)


def assignment_cross_entropy(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Mean over rows of ``assignment_rows`` (SwAV, arXiv 2006.09882, eq. 2; DINO, arXiv 2104.14294, eq. 2)."""
    return assignment_rows(logits, targets, temperature).mean()


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Soft assignments that use all prototypes equally (SwAV, arXiv 2006.09882, eq. 3 and 4).

    Args:
        scores: [N, K] similarity of each row with each prototype.
        epsilon: positive; smaller is sharper.
        iterations: rounds of scaling columns, then rows.

    Returns:
        [N, K]; rows sum to 1, columns nearly to N / K.
    """
    # In the log domain: exp(score / epsilon) underflows whole rows where N << K, and 0 / 0 follows.
    q = scores.float() / epsilon if scores.dtype != torch.float64 else scores / epsilon
    for _ in range(iterations):
        q = q - q.logsumexp(0, keepdim=True)
        q = q - q.logsumexp(1, keepdim=True)
    return q.softmax(-1)


def _normal_weights(weight: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weights that sum to 1, [N], and the mean weight, []."""
    weight = torch.ones_like(like[:, 0]) if weight is None else weight.to(like.dtype)
    return weight / weight.sum().clamp(min=1e-12), weight.mean()


def barlow(a: Tensor, b: Tensor, trade_off: float, weight: Tensor | None = None) -> Tensor:
    """Cross-correlation of two views pulled to the identity (Barlow Twins, arXiv 2103.03230, eq. 1 and 2).

    Args:
        a: [N, P] projections of view one.
        b: [N, P] projections of view two.
        trade_off: weight of the off-diagonal part.
        weight: [N] or None. Weights are normalised, and the loss is multiplied by their mean.

    Returns:
        [] squared distance of the diagonal from 1 plus ``trade_off`` times the sum of the off-diagonal squares; biased deviations.
    """
    share, mass = _normal_weights(weight, a)

    def standard(x: Tensor) -> Tensor:
        x = x - share @ x
        return x / (share @ x.square() + 1e-12).sqrt()

    c = (standard(a) * share[:, None]).T @ standard(b)  # [P, P]
    on = c.diagonal()
    off = c.square().sum() - on.square().sum()
    return mass * ((on - 1).square().sum() + trade_off * off)


def vicreg(a: Tensor, b: Tensor, invariance: float, variance: float, covariance: float, weight: Tensor | None = None) -> Tensor:
    """Invariance, variance and covariance (VICReg, arXiv 2105.04906, eq. 1 to 6).

    Args:
        a: [N, P] projections of view one.
        b: [N, P] projections of view two.
        invariance: weight of the mean squared difference over all elements.
        variance: weight of the hinge 1 - sqrt(unbiased variance + 1e-4), mean over dimensions and the two views.
        covariance: weight of the squared off-diagonal entries of the unbiased covariance, summed, over the width, summed over the views.
        weight: [N] or None. Weights are normalised, and the loss is multiplied by their mean.

    Returns:
        [].
    """
    share, mass = _normal_weights(weight, a)
    unbiased = 1 / (1 - share.square().sum()).clamp(min=1e-12)  # N / (N - 1) for equal weights

    def spread(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x - share @ x
        c = unbiased * (x * share[:, None]).T @ x  # [P, P]
        hinge = F.relu(1 - (c.diagonal() + 1e-4).sqrt()).mean()
        return hinge, (c.square().sum() - c.diagonal().square().sum()) / x.shape[1]

    (hinge_a, off_a), (hinge_b, off_b) = spread(a), spread(b)
    agree = share @ (a - b).square().mean(-1)
    return mass * (invariance * agree + variance * (hinge_a + hinge_b) / 2 + covariance * (off_a + off_b))

"""What the library computes, once more: slow loops over single numbers in float64, written from the papers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

Matrix = list[list[float]]
"""Rows."""


def plain(x: Tensor) -> Matrix:
    """[N, D] as Python numbers."""
    return [[float(v) for v in row] for row in x.detach().double()]


def dot(u: Sequence[float], v: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(u, v, strict=True))


def cosine(u: Sequence[float], v: Sequence[float]) -> float:
    return dot(u, v) / math.sqrt(dot(u, u) * dot(v, v))


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def softmax(row: Sequence[float], temperature: float = 1.0) -> list[float]:
    top = max(row)
    powers = [math.exp((v - top) / temperature) for v in row]
    return [p / math.fsum(powers) for p in powers]


def entropy(p: Sequence[float]) -> float:
    return -math.fsum(v * math.log(v) for v in p if v > 0)


# ---- losses -------------------------------------------------------------------------------------
def cross_entropy(logits: Sequence[float], target: Sequence[float], temperature: float) -> float:
    """-sum p log q, q the softmax of the logits."""
    top = max(logits)
    norm = math.log(math.fsum(math.exp((v - top) / temperature) for v in logits))
    return -math.fsum(p * ((v - top) / temperature - norm) for p, v in zip(target, logits, strict=True))


def find(query: Sequence[float], candidates: Matrix, partner: int, temperature: float) -> float:
    """-log of the share that a query's partner has among all candidates."""
    powers = [math.exp(cosine(query, c) / temperature) for c in candidates]
    return -math.log(powers[partner] / math.fsum(powers))


def nt_xent(a: Matrix, b: Matrix, temperature: float) -> float:
    """SimCLR, Algorithm 1: the mean of l(i, j) over both orders of each pair, over candidates k != i."""
    rows, n = a + b, len(a)
    losses = []
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        others = [k for k in range(2 * n) if k != i]
        losses.append(find(rows[i], [rows[k] for k in others], others.index(partner), temperature))
    return mean(losses)


def simclr(views: Sequence[Matrix], temperature: float) -> float:
    """NT-Xent of the first two; a local crop finds each of its image's two among all rows of both, but for the other one; all crops weigh alike."""
    n, rows, terms = len(views[0]), views[0] + views[1], [nt_xent(views[0], views[1], temperature)]
    for local in views[2:]:
        losses = []
        for i, row in enumerate(local):
            for partner, other in ((i, i + n), (i + n, i)):
                candidates = [k for k in range(2 * n) if k != other]
                losses.append(find(row, [rows[k] for k in candidates], candidates.index(partner), temperature))
        terms.append(mean(losses))
    return mean(terms)


def info_nce(queries: Matrix, keys: Matrix, temperature: float) -> float:
    return mean([find(q, keys, i, temperature) for i, q in enumerate(queries)])


def negative_cosine(predictions: Matrix, targets: Matrix) -> float:
    return -mean([cosine(p, t) for p, t in zip(predictions, targets, strict=True)])


def assignment_cross_entropy(logits: Matrix, targets: Matrix, temperature: float) -> float:
    return mean([cross_entropy(x, t, temperature) for x, t in zip(logits, targets, strict=True)])


def sinkhorn(scores: Matrix, epsilon: float, iterations: int) -> Matrix:
    """SwAV, listing in appendix A: exponentials, then columns and rows scaled in turn; rows sum to 1 in the end."""
    q = [[math.exp(v / epsilon) for v in row] for row in scores]
    for _ in range(iterations):
        columns = [math.fsum(row[k] for row in q) for k in range(len(q[0]))]
        q = [[v / columns[k] for k, v in enumerate(row)] for row in q]
        q = [[v / math.fsum(row) for v in row] for row in q]
    return [[v / math.fsum(row) for v in row] for row in q]


def barlow(a: Matrix, b: Matrix, trade_off: float, weight: Sequence[float] | None = None) -> float:
    """Weighted means stand for means; the whole times the mean weight."""
    w = [1.0] * len(a) if weight is None else list(weight)
    share = [v / math.fsum(w) for v in w]

    def standard(x: Matrix) -> Matrix:
        columns = []
        for j in range(len(x[0])):
            centre = dot(share, [row[j] for row in x])
            deviation = math.sqrt(dot(share, [(row[j] - centre) ** 2 for row in x]))
            columns.append([(row[j] - centre) / deviation for row in x])
        return columns

    za, zb = standard(a), standard(b)
    total = 0.0
    for i, u in enumerate(za):
        for j, v in enumerate(zb):
            c = math.fsum(s * x * y for s, x, y in zip(share, u, v, strict=True))
            total += (1 - c) ** 2 if i == j else trade_off * c**2
    return mean(w) * total


def vicreg(a: Matrix, b: Matrix, invariance: float, variance: float, covariance: float) -> float:
    n, width = len(a), len(a[0])

    def parts(x: Matrix) -> tuple[float, float]:
        centre = [mean([row[j] for row in x]) for j in range(width)]

        def cov(i: int, j: int) -> float:
            return math.fsum((row[i] - centre[i]) * (row[j] - centre[j]) for row in x) / (n - 1)

        hinge = mean([max(0.0, 1 - math.sqrt(cov(j, j) + 1e-4)) for j in range(width)])
        off = math.fsum(cov(i, j) ** 2 for i in range(width) for j in range(width) if i != j) / width
        return hinge, off

    (hinge_a, off_a), (hinge_b, off_b) = parts(a), parts(b)
    agree = mean([(x - y) ** 2 for u, v in zip(a, b, strict=True) for x, y in zip(u, v, strict=True)])
    return invariance * agree + variance * (hinge_a + hinge_b) / 2 + covariance * (off_a + off_b)


# ---- whole methods ------------------------------------------------------------------------------
# Each takes what the heads say, a crop each: [B][width] projections or predictions of the network and, where there is one, of the teacher.
def pairs(online: Sequence[Matrix], target: Sequence[Matrix]) -> list[tuple[Matrix, Matrix]]:
    """Every crop with every target of another crop."""
    return [(p, t) for g, t in enumerate(target) for v, p in enumerate(online) if v != g]


def moco(predictions: Sequence[Matrix], keys: Sequence[Matrix], temperature: float) -> float:
    """MoCo v3, Algorithm 1: ctr(q1, k2) + ctr(q2, k1), each times 2 tau; more crops: twice the mean over pairs."""
    return 2 * mean([2 * temperature * info_nce(p, k, temperature) for p, k in pairs(predictions, keys)])


def byol(predictions: Sequence[Matrix], projections: Sequence[Matrix]) -> float:
    """BYOL, eq. 2 in both directions, summed: |unit p - unit z|^2."""

    def apart(p: Sequence[float], z: Sequence[float]) -> float:
        a, b = math.sqrt(dot(p, p)), math.sqrt(dot(z, z))
        return math.fsum((x / a - y / b) ** 2 for x, y in zip(p, z, strict=True))

    return 2 * mean([mean([apart(u, v) for u, v in zip(p, z, strict=True)]) for p, z in pairs(predictions, projections)])


def simsiam(predictions: Sequence[Matrix], projections: Sequence[Matrix]) -> float:
    """SimSiam, eq. 2: D(p1, z2) / 2 + D(p2, z1) / 2."""
    return mean([negative_cosine(p, z) for p, z in pairs(predictions, projections)])


def swav(scores: Sequence[Matrix], n_global: int, queue: Sequence[Matrix], *, temperature: float, epsilon: float, iterations: int) -> float:
    """SwAV, eq. 2 and section 3.3: codes of a crop, with the queue's scores of that crop below, predicted from all other crops."""
    codes = [sinkhorn(scores[g] + queue[g], epsilon, iterations)[: len(scores[g])] for g in range(n_global)]
    return mean([assignment_cross_entropy(s, q, temperature) for s, q in pairs(scores, codes)])


def dino(
    student: Sequence[Matrix], teacher: Sequence[Matrix], centre: Sequence[float], student_temperature: float, teacher_temperature: float
) -> float:
    """DINO, eq. 3 and Algorithm 1: H(softmax((t - c) / tau_t), softmax(s / tau_s)) over all pairs of different crops."""
    targets = [[softmax([v - c for v, c in zip(row, centre, strict=True)], teacher_temperature) for row in t] for t in teacher]
    return mean([assignment_cross_entropy(s, t, student_temperature) for s, t in pairs(student, targets)])


# ---- optimisers ---------------------------------------------------------------------------------
def lars(
    weights: list[float], gradients: Sequence[Sequence[float]], *, lr: float, momentum: float, decay: float, trust: float, adapt: bool
) -> list[float]:
    """LARS over several steps: v <- m v + local rate x (g + decay x w); w <- w - lr x v."""
    v = [0.0] * len(weights)
    for g in gradients:
        move = [a + (decay if adapt else 0.0) * w for a, w in zip(g, weights, strict=True)]
        size, length = math.sqrt(dot(weights, weights)), math.sqrt(dot(move, move))
        local = trust * size / length if adapt and size > 0 and length > 0 else 1.0
        v = [momentum * a + local * b for a, b in zip(v, move, strict=True)]
        weights = [w - lr * a for w, a in zip(weights, v, strict=True)]
    return weights

"""Linear classifiers on frozen features; what there is to choose is chosen on a part of the training rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gnothi.contracts import DataError, SettingError, Source, did_you_mean
from gnothi.data import Order, holdout
from gnothi.evaluate.nearest import Array, labels_of
from gnothi.evaluate.result import Predictions, Result, accuracy
from gnothi.randomness import generator
from gnothi.schedules import cosine

STRENGTHS = tuple(10.0**e for e in (1, 0.5, 0, -0.5, -1, -1.5, -2, -2.5, -3, -3.5, -4, -4.5, -5))
"""Of the penalty strength/2 * |W|^2 beside the mean cross-entropy; scikit-learn's C is 1 / (strength * rows)."""
PATIENCE = 3
"""So many weaker strengths in a row that classify no better end the search."""
ITERATIONS, GAIN = 100, 1e-4
"""L-BFGS ends after so many iterations a strength, or when one gains less than this (nats)."""
AXES = 128
"""Main directions whose variances L-BFGS is told; it then needs a fraction of the passes."""
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Learning rates of the SGD protocol for a batch of 256; all are trained side by side."""
EPOCHS, BATCH, MOMENTUM = 100, 256, 0.9


@dataclass(frozen=True)
class Fit:
    """A linear classifier: scores are x @ weight + bias."""

    weight: Tensor
    """[D, C]."""
    bias: Tensor
    """[C]."""

    def logits(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, C]."""
        return torch.addmm(self.bias, x, self.weight)


@dataclass(frozen=True)
class Tried:
    """One setting, and how its classifier did on the held-out rows."""

    setting: float
    accuracy: float
    cross_entropy: float
    fit: Fit


Axes = tuple[Tensor, Tensor, Tensor]
Fits = Callable[[Tensor, Tensor, int, int], Iterator[tuple[float, Fit]]]
"""Rows [N, D], classes [N], how many classes, seed -> every setting with its classifier."""


def linear(
    train: Array,
    train_labels: Array,
    test: Array,
    test_labels: Array,
    *,
    protocol: str = "logistic",
    groups: np.ndarray | None = None,
    seed: int = 0,
    fraction: float = 0.2,
    names: Sequence[str] | None = None,
) -> Result:
    """Accuracy of a linear classifier on frozen features.

    Every feature is standardised by the rows trained on. The one free setting (penalty or learning rate) is chosen on a part held out of the training
    rows, by accuracy, then by cross-entropy; then all training rows are fitted once with it and the test rows are looked at once.

    Args:
        train: [N, D] features; they are held in memory as float32.
        train_labels: [N] integers; gaps are fine.
        test: [M, D].
        test_labels: [M] integers.
        protocol: "logistic" (L-BFGS, penalty chosen) or "sgd" (momentum 0.9, 100 epochs, cosine, learning rate chosen).
        groups: [N] of the training rows; none is divided by the choice.
        seed: of the held-out part, and of weights and order of "sgd".
        fraction: held out of the training rows.
        names: names of the classes, by label.

    Returns:
        Metric "linear"; ``details`` hold the chosen setting and all that were tried with their held-out accuracy.

    Raises:
        SettingError: there is no such protocol.
        DataError: too few rows or classes, or features that are not finite.
    """
    predictions, words, details = predict(
        train, train_labels, test, test_labels, protocol=protocol, groups=groups, seed=seed, fraction=fraction, names=names
    )
    return accuracy("linear", predictions, words, seeds=(seed,), **details)


def predict(
    train: Array,
    train_labels: Array,
    test: Array,
    test_labels: Array,
    *,
    protocol: str = "logistic",
    groups: np.ndarray | None = None,
    seed: int = 0,
    fraction: float = 0.2,
    names: Sequence[str] | None = None,
) -> tuple[Predictions, str, dict[str, Any]]:
    """The probabilities behind ``linear``, row by row; the protocol in words; what was tried."""
    check(protocol, fraction)
    fits, refit, grid, words = PROTOCOLS[protocol]
    known, asked = labels_of(train, train_labels, "train"), labels_of(test, test_labels, "test")
    x, ids = _held(train, "train"), np.unique(known)
    if len(ids) < 2 or len(test) == 0:
        raise DataError(f"a linear classifier needs two classes and a test row, got {len(ids)} and {len(test)}")
    y = torch.from_numpy(np.searchsorted(ids, known))
    kept, held = (torch.from_numpy(rows) for rows in holdout(Rows(known, groups), fraction, seed))
    tried = _try(fits, x, y, kept, held, len(ids), seed)
    best = max(tried, key=lambda t: (t.accuracy, -t.cross_entropy))
    mean, std = scale(x)
    fit = refit((x - mean) / std, y, len(ids), best, seed)
    everything = np.union1d(ids, asked)
    scores = np.zeros((len(test), len(everything)), dtype=np.float32)
    logits = fit.logits((_held(test, "test") - mean) / std)
    scores[:, np.searchsorted(everything, ids)] = logits.softmax(1).numpy()
    classes = tuple(str(names[i]) if names is not None and 0 <= i < len(names) else str(i) for i in everything)
    chosen = f"chosen among {len(grid)} on {len(held)} held-out training rows (seed {seed}), refitted on all {len(x)}"
    details = {"chosen": best.setting, "tried": [{"setting": t.setting, "accuracy": t.accuracy, "cross_entropy": t.cross_entropy} for t in tried]}
    return Predictions(np.searchsorted(everything, asked), scores, classes), f"{words} {chosen}", details


def check(protocol: str = "logistic", fraction: float = 0.2) -> None:
    """Refuse settings that cannot be."""
    if protocol not in PROTOCOLS:
        raise SettingError(f"protocol must be {' or '.join(PROTOCOLS)}, got {protocol!r}; {did_you_mean(protocol, PROTOCOLS)}")
    if not 0 < fraction < 1:
        raise SettingError(f"fraction must lie between 0 and 1, got {fraction}; 0.2 is usual")


class Rows(Source):
    """Labels and groups without images: what ``holdout`` looks at."""

    def __init__(self, labels: np.ndarray, groups: np.ndarray | None) -> None:
        self.labels, self.groups, self.n = labels, groups, len(labels)

    def __len__(self) -> int:
        return self.n


def _try(fits: Fits, x: Tensor, y: Tensor, kept: Tensor, held: Tensor, classes: int, seed: int) -> list[Tried]:
    """Every setting on the held-out rows, until ``PATIENCE`` in a row are no better than the best before."""
    mean, std = scale(x[kept])
    outside, tried, best = (x[held] - mean) / std, list[Tried](), 0
    for setting, fit in fits((x[kept] - mean) / std, y[kept], classes, seed):
        logits = fit.logits(outside)
        right = float((logits.argmax(1) == y[held]).double().mean())
        tried.append(Tried(setting, right, float(F.cross_entropy(logits.double(), y[held])), fit))
        best = len(tried) - 1 if right > tried[best].accuracy else best
        if len(tried) - 1 - best >= PATIENCE:
            break
    return tried


def scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each feature; a constant one is left at 0."""
    std, mean = torch.std_mean(x, dim=0, correction=0)
    return mean, torch.where(std > 1e-6 * mean.abs().clamp_min(1e-6), std, torch.ones_like(std))


def _held(features: Array, what: str) -> Tensor:
    x = features.detach().cpu() if isinstance(features, Tensor) else torch.from_numpy(np.array(features))
    x = x if x.dtype == torch.float64 else x.float()
    broken = (~torch.isfinite(x).all(dim=1)).nonzero()[:, 0]
    if len(broken):
        raise DataError(f"{what} features must be finite numbers, row {int(broken[0])} is not")
    return x


# ---- logistic regression -------------------------------------------------------------------------
def logistic(x: Tensor, y: Tensor, classes: int, seed: int = 0) -> Iterator[tuple[float, Fit]]:
    """Multinomial logistic regression at every strength, each from the solution of the one before."""
    fit, axes = None, _axes(x)
    for strength in STRENGTHS:
        fit = minimise(x, y, classes, strength, fit, axes)
        yield strength, fit


def minimise(x: Tensor, y: Tensor, classes: int, strength: float, start: Fit | None = None, axes: Axes | None = None) -> Fit:
    """The minimum of mean cross-entropy + strength/2 * |W|^2, by L-BFGS with its slope written out.

    The search moves V, where W = S V and S is about the inverse square root of the curvature: large along directions in which features hardly vary.

    Args:
        x: [N, D], centred.
        y: [N] in 0 ... classes - 1.
        classes: C.
        strength: of the penalty; the bias has none.
        start: where to begin, zeros by default.
        axes: of x, where they are known already.
    """
    n, rows = len(x), torch.arange(len(x))
    basis, variances, rest = axes or _axes(x)
    flat = float((rest / classes + strength) ** -0.5)
    extra = (variances / classes + strength) ** -0.5 - flat  # [K]

    def scaled(v: Tensor) -> Tensor:
        return torch.addmm(v, basis, extra[:, None] * (basis.T @ v), beta=flat)

    theta = torch.zeros(x.shape[1] + 1, classes, dtype=x.dtype)
    if start is not None:
        inverse = 1 / (extra + flat) - 1 / flat
        theta = torch.cat([start.weight / flat + basis @ (inverse[:, None] * (basis.T @ start.weight)), start.bias[None]])
    theta.requires_grad_(True)
    slope = theta.grad = torch.zeros_like(theta)
    search = torch.optim.LBFGS([theta], max_iter=ITERATIONS, tolerance_grad=0, tolerance_change=GAIN, history_size=20, line_search_fn="strong_wolfe")

    @torch.no_grad()
    def loss() -> Tensor:
        weight = scaled(theta[:-1])
        spoken = torch.log_softmax(torch.addmm(theta[-1], x, weight), dim=1)  # [N, C]
        value = -spoken[rows, y].mean() + strength / 2 * weight.square().sum()
        residual = spoken.exp_()
        residual[rows, y] -= 1
        residual /= n
        slope[:-1] = scaled(torch.addmm(weight, x.T, residual, beta=strength))
        slope[-1] = residual.sum(0)
        return value

    search.step(loss)
    done = theta.detach()
    return Fit(scaled(done[:-1]), done[-1])


def _axes(x: Tensor) -> Axes:
    """The main directions of centred rows, by three rounds of subspace iteration: basis [D, K], variances [K], mean variance of the rest."""
    n, width = x.shape
    count = min(AXES, width)
    basis = torch.randn(width, count, generator=generator(0, "axes"), dtype=torch.float64).to(x.dtype)
    for _ in range(3):
        basis = torch.linalg.qr(x.T @ (x @ basis))[0]
    seen = x @ basis
    variances, turn = torch.linalg.eigh(seen.T @ seen / n)
    rest = (x.square().sum() / n - variances.sum()).clamp_min(0) / max(width - count, 1)
    return basis @ turn, variances.clamp_min(0), rest


# ---- SGD -----------------------------------------------------------------------------------------
def sgd(x: Tensor, y: Tensor, classes: int, seed: int, rates: Sequence[float] = RATES) -> Iterator[tuple[float, Fit]]:
    """A linear layer a learning rate, all in one product: weights N(0, 0.01), bias 0, no decay, cosine to 0 over all steps."""
    n, width = x.shape
    batch = min(BATCH, n)
    first = 0.01 * torch.randn(width, classes, generator=generator(seed, "linear"), dtype=torch.float64).to(x.dtype)
    theta = torch.cat([first, torch.zeros(1, classes, dtype=x.dtype)])[:, None].repeat(1, len(rates), 1)  # [D + 1, L, C]
    velocity = torch.zeros_like(theta)
    rate = torch.tensor(rates, dtype=x.dtype)[:, None] * batch / 256  # [L, 1]
    order, total = Order(n, batch, seed), EPOCHS * (n // batch)
    for step in range(total):
        rows = order.rows(step)
        part = torch.cat([x[rows], torch.ones(batch, 1, dtype=x.dtype)], 1)  # [B, D + 1]
        residual = (part @ theta.flatten(1)).view(batch, len(rates), classes).softmax(2)
        residual[torch.arange(batch), :, y[rows]] -= 1
        velocity.mul_(MOMENTUM).add_((part.T @ residual.flatten(1)).view_as(theta) / batch)
        theta -= rate * cosine(step / total, 1.0, 0.0) * velocity
    for i, setting in enumerate(rates):
        yield setting, Fit(theta[:-1, i], theta[-1, i])


def _again_logistic(x: Tensor, y: Tensor, classes: int, best: Tried, seed: int) -> Fit:
    return minimise(x, y, classes, best.setting, best.fit)


def _again_sgd(x: Tensor, y: Tensor, classes: int, best: Tried, seed: int) -> Fit:
    return next(sgd(x, y, classes, seed, (best.setting,)))[1]


PROTOCOLS: dict[str, tuple[Fits, Callable[[Tensor, Tensor, int, Tried, int], Fit], Sequence[float], str]] = {
    "logistic": (logistic, _again_logistic, STRENGTHS, "logistic regression on standardised features, penalty"),
    "sgd": (
        sgd,
        _again_sgd,
        RATES,
        f"linear layer by SGD on standardised features, {EPOCHS} epochs of batches of {BATCH}, cosine to 0, learning rate",
    ),
}

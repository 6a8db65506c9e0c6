"""A measured number with its interval, its n and its protocol; and how numbers are summarised and compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

Z = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""
MOST_CONFUSED = 100
"""Classes up to which a result carries its confusion table."""


@dataclass(frozen=True)
class Result:
    """A number, its 95 % interval and what it takes to measure it again."""

    metric: str
    value: float
    low: float
    high: float
    n: int
    """Test rows."""
    protocol: str
    """Every choice that the number depends on, in words."""
    encoder: str = ""
    seeds: tuple[int, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    """Plain values: top5, balanced_accuracy, auroc, classes, counts, confusion, and what the metric adds."""
    correct: np.ndarray | None = field(default=None, compare=False, repr=False)
    """[n] bool, right or wrong by test row; for comparisons, not written out."""

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        return {
            "metric": self.metric,
            "encoder": self.encoder,
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "interval": [self.low, self.high],
            "n": self.n,
            "protocol": self.protocol,
            "seeds": list(self.seeds),
            "details": self.details,
        }


@dataclass(frozen=True)
class Predictions:
    """What a classifier says of M test rows, C classes."""

    truth: np.ndarray
    """[M] int64 positions in ``classes``."""
    scores: np.ndarray
    """[M, C] floats, larger for a likelier class; 0 for one without any evidence."""
    classes: tuple[str, ...]

    @property
    def predicted(self) -> np.ndarray:
        """[M] positions in ``classes``; equal scores go to the first."""
        best: np.ndarray = self.scores.argmax(axis=1)
        return best

    @property
    def correct(self) -> np.ndarray:
        """[M] bool."""
        right: np.ndarray = self.predicted == self.truth
        return right


@dataclass(frozen=True)
class Difference:
    """An accuracy less another one on the same rows, with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927, doi:10.2307/2276774).

    Args:
        right: successes.
        n: trials, at least one.

    Returns:
        Both ends, within [0, 1] and never empty.
    """
    p, z2 = right / n, Z * Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def accuracy(metric: str, predictions: Predictions, protocol: str, *, encoder: str = "", seeds: tuple[int, ...] = (), **details: Any) -> Result:
    """The share of right predictions with its Wilson interval, and what goes with it where classes are uneven."""
    right, n = int(predictions.correct.sum()), len(predictions.truth)
    low, high = wilson(right, n)
    return Result(metric, right / n, low, high, n, protocol, encoder, seeds, _details(predictions) | details, predictions.correct)


def _details(predictions: Predictions) -> dict[str, Any]:
    classes, n = predictions.classes, len(predictions.classes)
    confusion = np.zeros((n, n), dtype=np.int64)
    np.add.at(confusion, (predictions.truth, predictions.predicted), 1)
    counts = confusion.sum(axis=1)
    seen = counts > 0
    details: dict[str, Any] = {
        "top5": top(predictions, 5),
        "balanced_accuracy": float((confusion.diagonal()[seen] / counts[seen]).mean()),
        "auroc": auroc(predictions),
        "counts": dict(zip(classes, counts.tolist(), strict=True)),
    }
    if n <= MOST_CONFUSED:
        details |= {"classes": list(classes), "confusion": confusion.tolist()}
    return details


def top(predictions: Predictions, k: int) -> float:
    """The share of rows whose class is among the ``k`` of highest score; a class with score 0 never counts."""
    scores, rows = predictions.scores, np.arange(len(predictions.truth))
    own = scores[rows, predictions.truth][:, None]
    before = np.arange(scores.shape[1])[None] < predictions.truth[:, None]
    rank = (scores > own).sum(axis=1) + ((scores == own) & before).sum(axis=1)
    return float(((rank < k) & (own[:, 0] > 0)).mean())


def auroc(predictions: Predictions) -> float | None:
    """Area under the ROC curve, one class against the rest, mean over the classes that are in the test rows; None where there is only one."""
    areas = []
    for c in np.unique(predictions.truth):
        mine = predictions.truth == c
        if mine.all():
            return None
        others = np.sort(predictions.scores[~mine, c])
        below = np.searchsorted(others, predictions.scores[mine, c], "left") + np.searchsorted(others, predictions.scores[mine, c], "right")
        areas.append(below.mean() / 2 / len(others))  # a tie counts one half
    return float(np.mean(areas))


def paired(a: np.ndarray, b: np.ndarray) -> Difference:
    """How much more often ``a`` is right than ``b`` on the same rows, with Newcombe's 95 % interval.

    Newcombe 1998 (Statistics in Medicine 17:2635), method 10: Wilson intervals of both, joined by their correlation.

    Args:
        a: [N] bool, right or wrong by row.
        b: [N] bool, of the same rows.
    """
    a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    n, both, a_only, b_only = len(a), int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum())
    neither = n - both - a_only - b_only
    p, q = (both + a_only) / n, (both + b_only) / n
    (p_low, p_high), (q_low, q_high) = wilson(both + a_only, n), wilson(both + b_only, n)
    margins = (both + a_only) * (b_only + neither) * (both + b_only) * (a_only + neither)
    excess = float(both * neither - a_only * b_only)
    excess = max(excess - n / 2, 0.0) if excess > 0 else excess
    phi = excess / math.sqrt(margins) if margins else 0.0

    def joined(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    return Difference(p - q, p - q - joined(p - p_low, q_high - q), p - q + joined(p_high - p, q - q_low), n)


def against(first: tuple[str, np.ndarray, np.ndarray], rows: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    """The paired difference to the first encoder on the rows that both could read, for ``details``.

    Args:
        first: its name, its test rows [N] and right or wrong [N].
        rows: [M] of the other encoder.
        correct: [M] bool.
    """
    name, its_rows, its_correct = first
    _, mine, its = np.intersect1d(rows, its_rows, assume_unique=True, return_indices=True)
    return {"against": name, **asdict(paired(correct[mine], its_correct[its]))}


def summary(results: Sequence[Result]) -> Result:
    """One result from several seeds: the mean, with the 95 % t-interval of the seeds (one seed keeps its own interval).

    The interval speaks of another seed on the same test rows; ``details["values"]`` and ``details["std"]`` hold the parts.
    """
    from scipy.special import stdtrit

    first, values = results[0], np.array([r.value for r in results])
    if len(results) == 1:
        return first
    std = float(values.std(ddof=1))
    half = float(stdtrit(len(values) - 1, 0.975)) * std / math.sqrt(len(values))
    mean, seeds = float(values.mean()), tuple(s for r in results for s in r.seeds)
    protocol = f"{first.protocol}; mean of {len(values)} seeds, 95 % t-interval over seeds"
    details = {"values": values.tolist(), "std": std}
    return Result(first.metric, mean, mean - half, mean + half, first.n, protocol, first.encoder, seeds, details)

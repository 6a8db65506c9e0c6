"""Average precision in its four published forms, of any ranking; means over classes, with intervals by resampling images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gnothi.contracts import SettingError, did_you_mean
from gnothi.randomness import generator

RESAMPLES = 1000
"""Of the images, for an interval."""
AT_ONCE = 1 << 22
"""Numbers of resampled rankings that are held together."""
ELEVEN = np.arange(0.0, 1.1, 0.1)
"""The recalls of VOC07 as its published code steps through them: in floats, so that a recall of exactly 0.3, 0.6 or 0.7 falls short of its step."""
HUNDRED = np.linspace(0.0, 1.0, 101)
"""The recalls of COCO."""


def curve(right: np.ndarray, positives: np.ndarray | float, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision after each answer.

    Args:
        right: [n] bool, answers in the order of falling score.
        positives: [...] how much there is to find.
        weights: [..., n] how often each answer counts; once where None.

    Returns:
        [..., n] twice.
    """
    w = np.ones(len(right)) if weights is None else weights.astype(np.float64)
    found, seen = np.cumsum(w * right, axis=-1), np.cumsum(w, axis=-1)
    total = np.asarray(positives, dtype=np.float64)[..., None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return found / total, np.where(seen > 0, found / np.maximum(seen, 1e-300), 0.0)


def envelope(precision: np.ndarray) -> np.ndarray:
    """The best precision at this recall or a higher one: [..., n] -> same."""
    return np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]


def _at(recall: np.ndarray, precision: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Mean of the envelope at given recalls, 0 where they are never reached: [..., n] twice -> [...]."""
    rows, best = recall.reshape(-1, recall.shape[-1]), envelope(precision).reshape(-1, recall.shape[-1])
    best = np.concatenate([best, np.zeros((len(best), 1))], axis=1)
    values = [best[i, np.searchsorted(row, steps)].mean() for i, row in enumerate(rows)]
    return np.array(values).reshape(recall.shape[:-1])


def _sum(recall: np.ndarray, precision: np.ndarray) -> np.ndarray:
    area: np.ndarray = (np.diff(recall, axis=-1, prepend=0.0) * precision).sum(-1)
    return area


KINDS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "11-point": lambda recall, precision: _at(recall, precision, ELEVEN),
    "area": lambda recall, precision: _sum(recall, envelope(precision)),
    "no-envelope": _sum,
    "101-point": lambda recall, precision: _at(recall, precision, HUNDRED),
}
"""VOC07's, that of VOC from 2010 on, scikit-learn's (of scores without ties), COCO's."""


def average_precision(right: np.ndarray, positives: np.ndarray | float, kind: str = "area", weights: np.ndarray | None = None) -> np.ndarray:
    """Average precision of a ranking, or of one with many weightings.

    Args:
        right: [n] bool, answers in the order of falling score.
        positives: [...] how much there is to find.
        kind: "11-point" (VOC07), "area" (VOC from 2010 on: under the envelope), "no-envelope" (scikit-learn's), "101-point" (COCO).
        weights: [..., n] how often each answer counts; once where None.

    Returns:
        [...] in [0, 1]; NaN where there is nothing to find, 0 where there is no answer.

    Raises:
        SettingError: there is no such kind.
    """
    if kind not in KINDS:
        raise SettingError(f"average precision must be {', '.join(KINDS)}, got {kind!r}; {did_you_mean(kind, KINDS)}")
    none = np.asarray(positives) == 0
    if len(right) == 0:
        return np.where(none, np.nan, 0.0)
    recall, precision = curve(np.asarray(right, dtype=bool), np.where(none, 1.0, positives), weights)
    return np.where(none, np.nan, KINDS[kind](recall, precision))


@dataclass(frozen=True)
class Ranking:
    """All answers about one class, best first, and what there was to find."""

    right: np.ndarray
    """[n] bool."""
    images: np.ndarray
    """[n] positions of the images that were asked."""
    positives: np.ndarray
    """[M] how much each of the M images held."""


def ranked(scores: np.ndarray, truth: np.ndarray) -> Ranking:
    """The ranking of images by a class's scores; of equal scores the wrong ones come first, so that ties never flatter.

    Args:
        scores: [M].
        truth: [M] 1, 0, or -1 where nothing is known, which is neither hit nor miss.
    """
    known = np.flatnonzero(truth >= 0)
    order = known[np.lexsort((truth[known], -scores[known]))]
    return Ranking(truth[order] == 1, order, (truth == 1).astype(np.int64))


def mean_average_precision(rankings: Sequence[Ranking], kind: str) -> tuple[float, np.ndarray]:
    """The mean over the classes that there was something of to find, and each class's own [C], NaN for the others."""
    each = np.array([float(average_precision(r.right, r.positives.sum(), kind)) for r in rankings])
    return float(np.nanmean(each)), each


def resampled(rankings: Sequence[Ranking], kind: str, seed: int) -> np.ndarray:
    """The same mean on images drawn with replacement, the same draws for the same number of images: [RESAMPLES]."""
    n = len(rankings[0].positives)
    rows = torch.randint(n, (RESAMPLES, n), generator=generator(seed, "average precision")).numpy()
    counts = np.stack([np.bincount(own, minlength=n) for own in rows])  # [RESAMPLES, M]
    each = []
    for r in rankings:
        if r.positives.any():
            step = max(1, AT_ONCE // max(len(r.right), 1))
            parts = [counts[i : i + step] for i in range(0, RESAMPLES, step)]
            each.append(np.concatenate([average_precision(r.right, part @ r.positives, kind, part[:, r.images]) for part in parts]))
    values = np.stack(each)  # a resample may hold nothing of a class
    means: np.ndarray = np.nansum(values, axis=0) / np.maximum((~np.isnan(values)).sum(0), 1)
    return means

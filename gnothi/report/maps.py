"""A flat map of an embedding, groups to colour it by, and how far it can be trusted."""

from __future__ import annotations

import numpy as np

from gnothi import randomness
from gnothi.report.neighbours import nearest, unit

COMPONENTS = 50
"""Principal components that t-SNE sees."""


def components(features: np.ndarray, count: int) -> np.ndarray:
    """The first principal components of [N, D], [N, min(count, N, D)]; the sign is such that the largest entry of an axis is positive."""
    centred = np.asarray(features, dtype=np.float64) - np.mean(features, axis=0, dtype=np.float64)
    left, scale, right = np.linalg.svd(centred, full_matrices=False)
    sign = np.sign(right[np.arange(len(right)), np.abs(right).argmax(1)])
    placed: np.ndarray = left * scale * sign
    return placed[:, :count]


def flat(features: np.ndarray) -> bool:
    """Whether all rows of [N, D] point the same way, so that a map would show rounding errors."""
    rows = unit(features)
    return bool(np.sqrt(((rows - rows.mean(0)) ** 2).sum(1).mean()) < 1e-4)


def layout(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """Places of the rows on a plane: t-SNE of the leading principal components of the normalised rows.

    The same vectors and seed give the same map. Fewer than 12 rows are placed by their first two principal components.

    Args:
        features: [N, D].
        seed: seed of the map.

    Returns:
        [N, 2]
    """
    leading = components(unit(features), COMPONENTS)
    start = np.pad(leading[:, :2], ((0, 0), (0, max(0, 2 - leading.shape[1]))))
    if len(features) < 12:
        return start
    from sklearn.manifold import TSNE

    start = start / start[:, 0].std() * 1e-4
    tsne = TSNE(perplexity=min(30.0, (len(features) - 1) / 3), init=start, learning_rate="auto", random_state=_state(seed))
    return np.asarray(tsne.fit_transform(leading.astype(np.float32)), dtype=np.float64)


def clusters(features: np.ndarray, k: int = 8, seed: int = 0) -> np.ndarray:
    """Cluster numbers [N] of the normalised rows by k-means, the largest cluster 0; for colour where there are no labels."""
    from sklearn.cluster import KMeans

    k = min(k, len(features))
    found = KMeans(k, n_init=4, random_state=_state(seed)).fit(unit(features)).labels_
    rank = np.argsort(np.argsort(-np.bincount(found, minlength=k), kind="stable"), kind="stable")
    numbers: np.ndarray = rank[found]
    return numbers.astype(np.int64)


def kept(features: np.ndarray, places: np.ndarray, k: int = 10) -> float:
    """The share of each row's k nearest rows that are also among its k nearest on the map: how far to trust what looks near.

    Args:
        features: [N, D], N above k.
        places: [N, 2].
        k: neighbours compared.
    """
    true = nearest(features, features, k + 1)[0]
    distance = ((places[:, None] - places[None]) ** 2).sum(2)
    np.fill_diagonal(distance, np.inf)
    shown = np.argsort(distance, axis=1, kind="stable")[:, :k]
    shares = []
    for row in range(len(features)):
        own = [r for r in true[row] if r != row][:k]
        shares.append(len(np.intersect1d(own, shown[row])) / k)
    return float(np.mean(shares))


def _state(seed: int) -> int:
    return randomness.number(seed, "map") % 2**32

"""Nearest neighbours by cosine, and which of them to show."""

from __future__ import annotations

import numpy as np


def unit(features: np.ndarray) -> np.ndarray:
    """Scale the rows of [N, D] to length 1; a row of zeros stays zero."""
    features = np.asarray(features, dtype=np.float32)
    scaled: np.ndarray = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return scaled


def nearest(queries: np.ndarray, gallery: np.ndarray, k: int, block: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of ``gallery`` with the largest cosine to each query, the nearest first; among equals the lower row first.

    Args:
        queries: [Q, D].
        gallery: [N, D].
        k: neighbours; at most N are given.
        block: queries compared at a time, which bounds the memory by ``block`` x N.

    Returns:
        Rows [Q, k] int64 and cosines [Q, k] float32.
    """
    gallery, k = unit(gallery), min(k, len(gallery))
    rows, cosines = [], []
    for start in range(0, len(queries), block):
        similarity = unit(queries[start : start + block]) @ gallery.T  # [b, N]
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        rows.append(order)
        cosines.append(np.take_along_axis(similarity, order, axis=1))
    return np.concatenate(rows), np.concatenate(cosines)


def typical(labels: np.ndarray | None, show: int, order: np.ndarray) -> np.ndarray:
    """Pick queries to show: one of every class before a second of any, otherwise in the order given.

    Args:
        labels: [Q] class numbers, or None.
        show: queries wanted.
        order: rows to pick from, the preferred ones first.
    """
    if labels is None:
        return order[:show]
    seen: dict[int, int] = {}
    turns = []  # how many of its class come before a row
    for row in order:
        label = int(labels[row])
        seen[label] = seen.get(label, -1) + 1
        turns.append(seen[label])
    return order[np.argsort(turns, kind="stable")[:show]]


def worst(labels: np.ndarray, neighbours: np.ndarray, cosines: np.ndarray, show: int) -> np.ndarray:
    """The queries whose neighbours disagree most, the worst of every class before the second of any.

    Within a class those with the fewest neighbours of their own come first, among those the ones whose wrong neighbours are closest.

    Args:
        labels: [Q] class numbers of the queries.
        neighbours: [Q, k] class numbers of their neighbours.
        cosines: [Q, k].
        show: queries wanted; those whose neighbours all agree are never given.
    """
    wrong = neighbours != labels[:, None]
    closeness = np.where(wrong, cosines, 0).sum(1)
    order = np.lexsort((-closeness, -wrong.sum(1)))
    return typical(labels, show, order[wrong[order].any(1)])


def lonely(cosines: np.ndarray, show: int) -> np.ndarray:
    """Without labels: the queries farthest from anything, by the cosine to their nearest neighbour."""
    return np.argsort(cosines[:, 0], kind="stable")[:show]

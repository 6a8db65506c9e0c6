"""Cutting a part off a source for choosing: by a seed, by class, and never through a group."""

from __future__ import annotations

import numpy as np
import torch

from gnothi.contracts import DataError, SettingError, Source
from gnothi.randomness import generator


def holdout(source: Source, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide the rows in two.

    Without groups, each class gives its share (largest remainders, so that the total is right to a row). With groups, whole groups are held out
    in a random order, each only where it brings the held-out counts of the classes nearer to their shares.

    Args:
        source: with labels, groups, both or neither; rows without a label count as a class of their own.
        fraction: of the rows to hold out, in (0, 1).
        seed: of the choice.

    Returns:
        Rows kept and rows held out: int64, ascending, both of at least one row.

    Raises:
        SettingError: the fraction is not in (0, 1).
        DataError: there are fewer than two rows or two groups to divide.
    """
    if not 0 < fraction < 1:
        raise SettingError(f"the fraction to hold out must lie between 0 and 1, got {fraction}")
    labels = np.zeros(len(source), dtype=np.int64) if source.labels is None else source.labels
    classes, number = np.unique(labels, return_inverse=True)
    random = generator(seed, "holdout")
    if source.groups is None:
        if len(source) < 2:
            raise DataError(f"holding out needs at least 2 images, got {len(source)}")
        held = _rows(number, len(classes), fraction, random)
    else:
        held = _groups(source.groups, number, len(classes), fraction, random)
    return np.flatnonzero(~held), np.flatnonzero(held)


def _rows(number: np.ndarray, classes: int, fraction: float, random: torch.Generator) -> np.ndarray:
    """[N] bool: the rows held out."""
    n = len(number)
    total = min(max(round(fraction * n), 1), n - 1)
    share = np.bincount(number, minlength=classes) * (total / n)
    take = np.floor(share).astype(np.int64)
    # Ties between remainders are broken at random, not by the number of the class.
    order = torch.randperm(classes, generator=random).numpy()
    most = order[np.argsort(-(share - take)[order], kind="stable")]
    take[most[: total - take.sum()]] += 1
    shuffled = torch.randperm(n, generator=random).numpy()
    place = np.empty(n, dtype=np.int64)
    for c in range(classes):
        own = shuffled[number[shuffled] == c]
        place[own] = np.arange(len(own))
    taken: np.ndarray = place < take[number]
    return taken


def _groups(groups: np.ndarray, number: np.ndarray, classes: int, fraction: float, random: torch.Generator) -> np.ndarray:
    """[N] bool: the rows held out, whole groups."""
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise DataError(f"holding out needs at least 2 groups, or a group would be divided; all {len(groups)} images are of group {str(names[0])!r}")
    counts = np.zeros((len(names), classes), dtype=np.int64)
    np.add.at(counts, (group, number), 1)
    target, held = counts.sum(0) * fraction, np.zeros(len(names), dtype=bool)
    so_far = np.zeros(classes)
    order = torch.randperm(len(names), generator=random).numpy()
    for g in order:
        if np.abs(so_far + counts[g] - target).sum() < np.abs(so_far - target).sum():
            held[g], so_far = True, so_far + counts[g]
    if not held.any():
        held[order[np.argmin(np.abs(counts[order] - target).sum(1))]] = True
    if held.all():
        held[order[-1]] = False
    return held[group]

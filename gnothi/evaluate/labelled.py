"""Few labels: which rows of the training part may show theirs, the same ones for every encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from gnothi.contracts import DataError
from gnothi.data import holdout
from gnothi.evaluate.linear import Rows
from gnothi.randomness import generator


def chosen(labels: np.ndarray, names: Sequence[str], seed: int, *, share: float = 1.0, shots: int | None = None) -> tuple[np.ndarray, str]:
    """Rows whose labels are shown.

    A larger share holds the rows of a smaller one of the same seed, and more shots those of fewer.

    Args:
        labels: [N] positions in ``names``.
        names: of the classes.
        seed: of the choice.
        share: of the rows of each class, by largest remainders so that the total is right to a row.
        shots: rows of each class instead of a share.

    Returns:
        [M] int64, ascending; and how they were chosen, in words.

    Raises:
        DataError: a class would have no row, or fewer than ``shots``.
    """
    n, ids = len(labels), np.unique(labels)
    if shots is not None:
        return _shots(labels, names, seed, shots), f"{shots} labels a class (seed {seed})"
    if share >= 1:
        return np.arange(n), f"all {n} labels"
    rows = holdout(Rows(labels, None), share, seed)[1] if n > 1 else np.arange(n)
    without = np.setdiff1d(ids, labels[rows])
    if len(without):
        raise DataError(
            f"--share {share:g} of {n} labels leaves {len(without)} of {len(ids)} classes without any, such as {names[without[0]]}; "
            "--shots 1 gives each one"
        )
    return rows, f"{len(rows)} of {n} labels ({share:.3g} of each class, seed {seed})"


def _shots(labels: np.ndarray, names: Sequence[str], seed: int, shots: int) -> np.ndarray:
    order = torch.randperm(len(labels), generator=generator(seed, "shots")).numpy()
    rows = []
    for c in np.unique(labels):
        own = order[labels[order] == c]
        if len(own) < shots:
            raise DataError(
                f"--shots {shots}: the class {names[c]} has {len(own)} labelled rows; at most {np.bincount(labels)[np.unique(labels)].min()} "
                "shots can be had"
            )
        rows.append(own[:shots])
    return np.sort(np.concatenate(rows))

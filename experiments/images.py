"""The images an experiment learns from: as many of every class, the first of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def write_images(data: Path, path: Path, train: int, test: int) -> None:
    """Write an .npz with both splits, unless it is there: the first images of every class, in the order in which they stand.

    Args:
        data: folder of train.npz and test.npz with ``images`` and ``labels``.
        path: the file; the test images are the same whatever the number of those that train.
        train: how many images train, of all classes together.
        test: how many test.
    """
    if path.exists():
        return
    parts: dict[str, Any] = {}
    for split, many in (("train", train), ("test", test)):
        with np.load(data / f"{split}.npz") as packed:
            images, labels = packed["images"], packed["labels"]
        classes = np.unique(labels)
        rows = np.sort(np.concatenate([np.flatnonzero(labels == c)[: many // len(classes)] for c in classes]))
        parts |= {f"{split}_images": images[rows], f"{split}_labels": labels[rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **parts)

"""The images an experiment learns from: as many of every class, the first of them; and others that are asked where something is chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from gnothi.contracts import DataError
from gnothi.files import replace_file, write_text

ASKING = slice(1000, 1500)
"""Of the training images of every class, those by which experiments choose."""


def write_images(data: Path, path: Path, train: int, test: int, asking: bool = False) -> None:
    """Write an .npz with both splits, unless it is there: the first images of every class, in the order in which they stand.

    What it is of stands beside it, in a .json of the same name.

    Args:
        data: folder of train.npz and test.npz with ``images`` and ``labels``.
        path: the file; the test images are the same whatever the number of those that train.
        train: how many images train, of all classes together; all there are where there are fewer.
        test: how many test.
        asking: a split "val", too, of ``ASKING`` of every class; these then do not train.

    Raises:
        DataError: the file is there and of other images.
    """
    about, beside = {"data": data.resolve().name, "train": train, "test": test, "asking": asking}, path.with_suffix(".json")
    if path.exists():
        before = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else about
        if before != about:
            words, others = (", ".join(f"{key} {value}" for key, value in of.items()) for of in (about, before))
            raise DataError(f"{path} is of {others}, not of {words}; remove it, or name another folder")
        return
    parts: dict[str, Any] = {}
    for split, many in (("train", train), ("test", test)):
        with np.load(data / f"{split}.npz") as packed:
            images, labels = packed["images"], packed["labels"]
        of_class = [np.flatnonzero(labels == c) for c in np.unique(labels)]
        taken = {split: of_class}
        if asking and split == "train":
            taken = {"train": [np.delete(rows, ASKING) for rows in of_class], "val": [rows[ASKING] for rows in of_class]}
        for name, of in taken.items():
            rows = np.sort(np.concatenate([r if name == "val" else r[: many // len(of)] for r in of]))
            parts |= {f"{name}_images": images[rows], f"{name}_labels": labels[rows]}
    replace_file(path, lambda temporary: save(temporary, parts))
    write_text(beside, json.dumps(about) + "\n")


def save(path: Path, parts: dict[str, Any]) -> None:
    """An .npz under just this name."""
    with path.open("wb") as file:
        np.savez(file, **parts)

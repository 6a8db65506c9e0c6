"""Any map-style dataset from Python: anything with ``len`` and ``[row]``."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gnothi.contracts import DataError, Source
from gnothi.data.arrays import finish, kept_type, numbered
from gnothi.data.decode import unpacked
from gnothi.data.forms import Form, agree, fit, form_of

BROKEN = (LookupError, OSError, ValueError, RuntimeError, SyntaxError)
"""What a dataset may raise for an item that cannot be read."""
LOOKED_AT = 64
"""At most so many items, spread evenly, decide on the layout."""


class DatasetSource(Source):
    """Items of a dataset, read one by one when asked for; ``from_dataset`` makes one."""

    def __init__(self, dataset: Any, labels: Any = None, classes: tuple[str, ...] | None = None) -> None:
        self.dataset = dataset
        rows = np.unique(np.linspace(0, len(dataset) - 1, min(LOOKED_AT, len(dataset))).astype(np.int64))
        self.layout = agree([self._stored(int(row))[1] for row in rows])
        self.channels, self.dtype = self.layout.channels, self.layout.torch_dtype
        self.labels, self.classes = numbered(labels, classes, len(dataset), type(dataset).__name__)

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, row: int, shrink: int = 1) -> Tensor:
        try:
            return torch.from_numpy(fit(*self._stored(row), self.layout))
        except DataError as error:
            raise DataError(f"{self.name(row)}: {error}") from error

    def fingerprint(self) -> str:
        """Digest of the kind and length of the dataset, its labels, and the items that decided on the layout."""
        digest = hashlib.sha256(repr((type(self.dataset).__qualname__, len(self), self.layout)).encode())
        for row in np.unique(np.linspace(0, len(self) - 1, min(LOOKED_AT, len(self))).astype(np.int64)):
            digest.update(self.image(int(row)).numpy().tobytes())
        return finish(digest, self)

    def _stored(self, row: int) -> tuple[np.ndarray, Form]:
        """[H, W, C] and its form."""
        try:
            item = self.dataset[row]
        except BROKEN as error:
            raise DataError(f"cannot be read: {' '.join(str(error).split())}") from error
        image = item[0] if isinstance(item, tuple | list) else item
        if isinstance(image, Image.Image):
            return unpacked(image)
        if not isinstance(image, Tensor | np.ndarray) or image.ndim not in (2, 3):
            what = f"{type(image).__name__} of shape {tuple(image.shape)}" if isinstance(image, Tensor | np.ndarray) else type(image).__name__
            raise DataError(f"must be a PIL image, a tensor [C, H, W] or an array [H, W, C], or a tuple that starts with one, got {what}")
        pixels = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels.transpose(1, 2, 0) if isinstance(image, Tensor) else pixels
        pixels = kept_type(pixels, "pixels")
        return pixels, form_of({1: "grey", 3: "rgb"}.get(pixels.shape[2], f"{pixels.shape[2]} channels"), pixels)


def from_dataset(dataset: Any) -> DatasetSource:
    """Use a dataset as a source.

    Labels come from its ``targets`` or ``labels`` where it has them, one an item; otherwise, where the first item is a pair that ends with
    a whole number, from reading every item once. Classes come from its ``classes``.

    Args:
        dataset: its items are an image or (image, label). An image is a PIL image, a tensor [C, H, W] or [H, W], or an array [H, W, C] or [H, W].

    Raises:
        DataError: it is empty, has no length, or its items are something else.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"a dataset must have a length and items by number, got {type(dataset).__name__}; for a stream, save shards or a folder first"
        )
    if len(dataset) == 0:
        raise DataError(f"the dataset {type(dataset).__name__} is empty")
    labels = next((getattr(dataset, name) for name in ("targets", "labels", "_labels") if _one_each(dataset, name)), None)
    if labels is None and _is_pair(dataset[0]):
        labels = [_label(dataset, row) for row in range(len(dataset))]
    classes = getattr(dataset, "classes", None)
    usable = labels is not None and isinstance(classes, list | tuple) and all(isinstance(c, str) for c in classes)
    return DatasetSource(dataset, labels, tuple(classes) if usable and classes is not None else None)


def _one_each(dataset: Any, name: str) -> bool:
    values = getattr(dataset, name, None)
    return values is not None and hasattr(values, "__len__") and len(values) == len(dataset)


def _label(dataset: Any, row: int) -> int:
    """The label of an item, -1 where it cannot be read."""
    try:
        return int(dataset[row][1])
    except BROKEN:
        return -1


def _is_pair(item: Any) -> bool:
    if not isinstance(item, tuple | list) or len(item) < 2:
        return False
    label = item[1]
    whole = isinstance(label, int | np.integer)
    return whole or (isinstance(label, Tensor | np.ndarray) and label.ndim == 0 and not np.issubdtype(np.asarray(label).dtype, np.floating))

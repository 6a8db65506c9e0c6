"""Images in memory: tensors, NumPy arrays, ``.npy`` and ``.npz`` files, and part of any source."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gnothi.contracts import DataError, Source

IMAGES, LABELS = ("images", "x", "data", "arr_0"), ("labels", "y", "targets", "arr_1")
SPLITS = ("train", "val", "test")
EXACT_IN_FLOAT32 = 2**24
MOST_CLASSES = 1_000_000
"""A label beyond is taken for something else, such as a number of a patient."""


class ArraySource(Source):
    """Images of one size in memory.

    uint8, uint16 and float32 are kept. bool becomes uint8, 0 and 255. Other floats become float32, and so do other integers where all values
    lie within 2**24, so that none changes. A float that is not finite is refused.

    Args:
        images: [N, H, W], [N, H, W, C] or [N, C, H, W], an array or a tensor.
        labels: [N] whole numbers from 0, with -1 for none, or [N] text; also [N, 1].
        classes: names of the classes, which ``labels`` index; by default the distinct texts in order, or the numbers up to the highest.
        groups: [N] patient, slide or site.
        axes: ``NHW``, ``NHWC`` or ``NCHW``; by default the channel axis is the one of the second and the last that is smaller than both others.
        names: [N] what a person calls each image.
        source: what to call the whole in an error: the file's name.

    Raises:
        DataError: the shape is ambiguous, or images, labels, classes and groups do not fit together.
    """

    def __init__(
        self,
        images: np.ndarray | Tensor,
        labels: Any = None,
        classes: Sequence[str] | None = None,
        groups: Any = None,
        *,
        axes: str | None = None,
        names: Sequence[str] | None = None,
        source: str = "images",
    ) -> None:
        raw = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
        array = torch.from_numpy(_channels_first(kept_type(raw, source), axes, source))
        self.array: Tensor = array
        self.channels, self.dtype = array.shape[1], array.dtype
        self.labels, self.classes = numbered(labels, classes, len(array), source)
        self.groups = None if groups is None else _column(groups, len(array), f"{source}: groups").astype(str)
        self.names = None if names is None else tuple(names)
        self._digest: str | None = None

    def __len__(self) -> int:
        return len(self.array)

    def image(self, row: int, shrink: int = 1) -> Tensor:
        return self.array[row]

    def shape(self, row: int) -> tuple[int, int]:
        return self.array.shape[2], self.array.shape[3]

    def name(self, row: int) -> str:
        return f"row {row}" if self.names is None else self.names[row]

    def fingerprint(self) -> str:
        if self._digest is None:
            digest = hashlib.sha256(repr((tuple(self.array.shape), self.dtype)).encode())
            digest.update(self.array.numpy().data)
            self._digest = finish(digest, self)
        return self._digest


class Subset(Source):
    """Some rows of a source, in the order given."""

    def __init__(self, source: Source, rows: Any) -> None:
        self.source, self.rows = source, np.asarray(rows, dtype=np.int64)
        self.channels, self.dtype, self.classes = source.channels, source.dtype, source.classes
        self.labels = None if source.labels is None else source.labels[self.rows]
        self.groups = None if source.groups is None else source.groups[self.rows]
        self.array = None if source.array is None else source.array[torch.from_numpy(self.rows)]

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, row: int, shrink: int = 1) -> Tensor:
        return self.source.image(int(self.rows[row]), shrink)

    def shape(self, row: int) -> tuple[int, int]:
        return self.source.shape(int(self.rows[row]))

    def name(self, row: int) -> str:
        return self.source.name(int(self.rows[row]))

    def fingerprint(self) -> str:
        return hashlib.sha256(self.source.fingerprint().encode() + self.rows.tobytes()).hexdigest()[:16]


def finish(digest: hashlib._Hash, source: Source) -> str:
    """Add labels, classes and groups to a digest of the images, and shorten it to 16 hexadecimal digits."""
    for part in (source.labels, source.groups):
        digest.update(b"none" if part is None else repr(part.tolist()).encode())
    digest.update(repr(source.classes).encode())
    return digest.hexdigest()[:16]


def numbered(labels: Any, classes: Sequence[str] | None, n: int, source: str) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Check labels, number them where they are text, and name the classes.

    Returns:
        [N] int64 with -1 for none, and the classes; None and None where there are no labels.
    """
    if labels is None:
        return None, None
    column = _column(labels, n, f"{source}: labels")
    if column.dtype.kind == "U":
        text = column
        names = tuple(classes) if classes is not None else tuple(sorted(set(text.tolist()) - {""}))
        place = {name: number for number, name in enumerate(names)} | {"": -1}
        unknown = sorted(set(text.tolist()) - set(place))
        if unknown:
            raise DataError(f"{source}: the label {unknown[0]!r} is none of the {len(names)} classes")
        return np.array([place[t] for t in text.tolist()], dtype=np.int64), names
    whole = column.astype(np.int64) if column.dtype.kind in "biuf" and (np.abs(column.astype(np.float64)) < 2**62).all() else None
    if whole is None or (whole != column).any() or whole.min(initial=0) < -1:
        wrong = column if whole is None else column[(whole != column) | (whole < -1)]
        raise DataError(f"{source}: labels must be text, or whole numbers from 0 with -1 for none, got {column.dtype} such as {wrong[0]}")
    highest = int(whole.max(initial=-1))
    if highest >= MOST_CLASSES:
        raise DataError(f"{source}: labels must number at most {MOST_CLASSES:,} classes from 0, got the label {highest}")
    if classes is not None and highest >= len(classes):
        raise DataError(f"{source}: the label {highest} needs {highest + 1} classes, got {len(classes)}")
    return whole, tuple(str(c) for c in classes) if classes is not None else tuple(str(i) for i in range(highest + 1))


def _column(values: Any, n: int, what: str) -> np.ndarray:
    column = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    column = column[:, 0] if column.ndim == 2 and column.shape[1] == 1 else column
    if column.shape != (n,):
        raise DataError(f"{what} must have the shape ({n},), one for each image, got {column.shape}")
    return _text(column, what)


def _text(column: np.ndarray, what: str) -> np.ndarray:
    """Bytes as text, which is UTF-8; anything else as it is."""
    try:
        return np.char.decode(column, "utf-8") if column.dtype.kind == "S" else column
    except UnicodeDecodeError as error:
        raise DataError(f"{what}: text must be UTF-8 ({error.reason} at byte {error.start})") from None


def kept_type(images: np.ndarray, source: str) -> np.ndarray:
    """Numbers of any type as uint8, uint16 or float32, by the rule of ``ArraySource``; the shape is left alone."""
    kind = images.dtype.kind
    if images.size == 0:
        raise DataError(f"{source}: there must be at least one image with at least one pixel, got the shape {images.shape}")
    if kind == "b":
        return images.astype(np.uint8) * np.uint8(255)
    if images.dtype.newbyteorder("=") in (np.uint8, np.uint16):
        return images.astype(images.dtype.newbyteorder("="), copy=False)
    if kind in "iu":
        if max(-int(images.min()), int(images.max())) > EXACT_IN_FLOAT32:
            raise DataError(f"{source}: {images.dtype} values beyond 2**24 do not fit float32 exactly, got up to {images.max()}; scale them first")
        return images.astype(np.float32)
    if kind != "f":
        raise DataError(f"{source}: images must be integers, floats or bool, got {images.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is refused below
        floats = images.astype(np.float32, copy=False)
    if not np.isfinite(floats).all():
        row = int(np.flatnonzero(~np.isfinite(floats.reshape(len(floats), -1)).all(1))[0])
        raise DataError(f"{source}: row {row} holds a value that is not finite in float32")
    return floats


def _channels_first(images: np.ndarray, axes: str | None, source: str) -> np.ndarray:
    """[N, C, H, W], contiguous, from any of the three layouts."""
    axes = axes or _layout(images.shape, source)
    if len(axes) != images.ndim:
        raise DataError(f"{source}: axes {axes} need {len(axes)} dimensions, got the shape {images.shape}")
    images = images[:, None] if axes == "NHW" else images.transpose(0, 3, 1, 2) if axes == "NHWC" else images
    images = np.ascontiguousarray(images)
    return images if images.flags.writeable else images.copy()


def _layout(shape: tuple[int, ...], source: str) -> str:
    if len(shape) == 3 and shape[2] > 4:
        return "NHW"
    if len(shape) == 4:
        _, a, b, c = shape
        if a < min(b, c):
            return "NCHW"
        if c < min(a, b):
            return "NHWC"
    raise DataError(
        f"{source}: the shape {shape} does not say which axis is which; give data.axes as NHW, NHWC or NCHW"
        if len(shape) in (3, 4)
        else f"{source}: images must have the shape [N, H, W], [N, H, W, C] or [N, C, H, W], got {shape}"
    )


# ---- files ---------------------------------------------------------------------------------------
def load(path: Path) -> Mapping[str, np.ndarray]:
    """Every array of an ``.npz`` (by its key) or ``.npy`` (as ``images``). Nothing is unpickled.

    Raises:
        DataError: not such a file, broken, or it holds pickled objects.
    """
    try:
        read = np.load(path, allow_pickle=False)
        if isinstance(read, np.ndarray):
            return {"images": read}
        with read:
            _fits(path, sum(member.file_size for member in read.zip.infolist()))
            arrays = {key: read[key] for key in read.files}
            strange = next((key for key, array in arrays.items() if not isinstance(array, np.ndarray)), None)
            if strange is None:
                return arrays
            raise ValueError(f"{strange} is no array")
    except MemoryError as error:
        raise DataError(f"{path}: cannot be read as {path.suffix}: what it declares does not fit into memory") from error
    except DataError:
        raise
    except Exception as error:  # a broken archive's reader raises anything
        why = (
            "it holds Python objects, which are never unpickled; save plain arrays" if "pickle" in str(error) else "it is broken or of another format"
        )
        raise DataError(f"{path}: cannot be read as {path.suffix}: {why}") from error


def _fits(path: Path, size: int) -> None:
    """Refuse an archive that unpacks to more than all memory, before it is unpacked."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise DataError(f"{path}: unpacks to {size / 2**30:,.0f} GiB, more than this machine's memory of {memory / 2**30:,.0f} GiB")


def array_splits(path: Path) -> tuple[str, ...]:
    """The splits of an ``.npz`` whose keys are such as ``train_images`` or ``x_train``; () for a plain one or an ``.npy``."""
    if path.suffix.lower() == ".npy":
        return ()
    try:
        with zipfile.ZipFile(path) as archive:
            keys = {name.removesuffix(".npy") for name in archive.namelist()}
    except Exception as error:  # a broken archive's reader raises anything
        raise DataError(f"{path}: cannot be read as .npz: it is broken or of another format") from error
    return tuple(split for split in SPLITS if _key(keys, IMAGES, split))


def open_arrays(path: Path, split: str | None = None, axes: str | None = None) -> ArraySource:
    """An ``.npy``, or an ``.npz`` with images and optional labels, classes and groups.

    Args:
        path: the file. Keys: images (or x, data, arr_0), labels (or y, targets, arr_1), classes, groups; with splits ``train_images`` or ``x_train``.
        split: one of ``array_splits(path)``.
        axes: as in ``ArraySource``.
    """
    arrays = load(path)
    key = _key(arrays, IMAGES, split)
    if key is None:
        raise DataError(f"{path}: needs an array named images (or x, data, arr_0), it holds {', '.join(map(_shown, sorted(arrays))) or 'nothing'}")
    labels, groups = _key(arrays, LABELS, split), _key(arrays, ("groups",), split)
    return ArraySource(
        arrays[key],
        arrays[labels] if labels else None,
        [str(c) for c in _text(np.ravel(arrays["classes"]), f"{path.name}: classes")] if labels and "classes" in arrays else None,
        arrays[groups] if groups else None,
        axes=axes,
        source=path.name,
    )


def _shown(key: str) -> str:
    return key if key.isprintable() else repr(key)


def _key(keys: Any, words: Sequence[str], split: str | None) -> str | None:
    names = words if split is None else [name for word in words for name in (f"{split}_{word}", f"{word}_{split}")]
    return next((name for name in names if name in keys), None)

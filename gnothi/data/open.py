"""A name becomes a source: ``photos``, a folder, ``x.npz``, ``x.npy``, ``cifar10@test``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from gnothi.contracts import DataError, Source, Spec, did_you_mean
from gnothi.data.arrays import array_splits, open_arrays
from gnothi.data.photos import photo_tiles

SPLIT_WORDS = ("train", "val", "test")
ARRAYS = (".npz", ".npy")


class DataSpec(Spec):
    """Settings of the data, whatever its name."""

    labels: str | None = None
    """A CSV with labels or groups; its first column holds file names or paths relative to the folder."""
    label_column: str | None = None
    """The column of ``data.labels`` that holds the class; by default the one called label or class."""
    group_column: str | None = None
    """The column of ``data.labels`` that holds the group (patient, slide, site), which no split divides; by default the one called group."""
    channels: int | None = Field(default=None, ge=1)
    """Channels of every image of a folder; by default those that most files have (docs/data.md says what is converted, and how)."""
    axes: Literal["NHW", "NHWC", "NCHW"] | None = None
    """Layout of arrays, where their shape does not say it."""
    root: str = "~/.cache/gnothi/data"
    """Where torchvision's data sets lie."""
    download: bool = False
    """Whether a torchvision data set that is not there may be downloaded."""
    tile: int = Field(default=32, ge=4)
    """Side of the tiles of ``photos``, pixels."""
    per_class: int = Field(default=250, ge=1)
    """Training tiles of each photograph."""
    per_class_test: int = Field(default=60, ge=1)
    """Test tiles of each photograph."""
    tile_seed: int = 0
    """Seed of the tiles of ``photos``; it is not the run's, so that runs of several seeds see the same data."""
    broken_fraction: float = Field(default=0.02, ge=0, le=1)
    """The fraction of broken images above which a run stops."""


def open(name: str, *, settings: DataSpec = DataSpec(), split: str | None = None) -> Source:  # noqa: B008
    """Open images by name.

    Args:
        name: ``photos``, a folder, an ``.npz`` or ``.npy``, or a torchvision data set, with ``@train`` or ``@test`` where there are splits.
        settings: what the name leaves open.
        split: used where the name has no ``@``; by default train, or everything where there are no splits.

    Raises:
        DataError: there is no such data, or no such split.
    """
    name, said = divide(name)
    known, wanted = splits(name, settings), said or split
    if wanted is not None and wanted not in known and (known or wanted != "train"):
        raise DataError(_no_such_split(name, wanted, known))
    chosen = (wanted or known[0]) if known else None
    return _open(name, settings, chosen)


def splits(name: str, settings: DataSpec = DataSpec()) -> tuple[str, ...]:  # noqa: B008
    """The splits a name has, the one for training first; () where it has none."""
    name, _ = divide(name)
    path = Path(name).expanduser()
    if name == "photos":
        return ("train", "test")
    if path.suffix.lower() in ARRAYS and path.is_file():
        return array_splits(path)
    raise DataError(f"{name}: no such data")


def divide(name: str) -> tuple[str, str | None]:
    """Take ``@train`` off a name; a path that exists as it is written is left alone."""
    front, at, back = name.rpartition("@")
    return (front, back) if at and front and not Path(name).expanduser().exists() else (name, None)


def _open(name: str, settings: DataSpec, split: str | None) -> Source:
    path = Path(name).expanduser()
    if name == "photos":
        count = settings.per_class if split == "train" else settings.per_class_test
        return photo_tiles(split or "train", settings.tile, count, settings.tile_seed)
    return open_arrays(path, split, settings.axes)


def _no_such_split(name: str, wanted: str, known: tuple[str, ...]) -> str:
    if known:
        return f"{name}@{wanted}: no such split; {did_you_mean(wanted, known)}"
    return f"{name} has no splits; give the {wanted} data by its own name, as a second folder or file"

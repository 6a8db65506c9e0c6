"""A name becomes a source: ``photos``, a folder, ``x.npz``, ``x.npy``, ``shards:PATTERN``, ``tiles:FOLDER``, ``cifar10@test``."""

from __future__ import annotations

import difflib
import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gnothi.contracts import DataError, SettingError, Source, Spec, did_you_mean
from gnothi.data.arrays import array_splits, open_arrays
from gnothi.data.decode import EXTENSIONS
from gnothi.data.folder import folder_splits, open_folder
from gnothi.data.forms import TYPES
from gnothi.data.index import Wanted
from gnothi.data.labels import attach, read_table
from gnothi.data.patterns import PREFIX as SHARDS
from gnothi.data.photos import photo_tiles
from gnothi.data.shards import open_shards, shard_splits
from gnothi.data.tiles import PREFIX as TILES
from gnothi.data.tiles import SIDE, Cut, TileSource, open_tiles
from gnothi.data.torchvision_sets import SETS, open_set

ARRAYS = (".npz", ".npy")
PYTHON = "python:"
"""How the name of a source begins that no command line can open."""
PHOTO_TILE = 32
"""Side of the tiles of ``photos``, where nobody says otherwise."""


class DataSpec(Spec):
    """Settings of the data, whatever its name."""

    labels: str | None = None
    """A CSV with labels or groups; its first column holds file names or paths relative to the folder."""
    label_column: str | None = None
    """The column of ``data.labels``, or the field of a shard's .json, that holds the class; by default the one called label, class or target, or the
    second of a CSV's two columns."""
    group_column: str | None = None
    """The column of ``data.labels``, or the field of a shard's .json, that holds the group (patient, slide, site), which no split divides; by default
    the one called group, patient, slide or site."""
    channels: int | None = Field(default=None, ge=1)
    """Channels of every image of a folder; by default 3 where any picture looked at has colour, 1 where none has, and what most files have where
    most are no pictures (docs/data.md says what is converted, and how)."""
    dtype: Literal["uint8", "uint16", "float32"] | None = None
    """Type of every image of a folder; by default uint16 where any of those looked at first has 16 bits. Nothing is ever narrowed."""
    axes: Literal["NHW", "NHWC", "NCHW"] | None = None
    """Layout of arrays, where their shape does not say it."""
    root: str = "~/.cache/gnothi/data"
    """Where torchvision's data sets and copies of remote shards lie."""
    download: bool = False
    """Whether a torchvision data set that is not there may be downloaded; shards with a URL are then copied once, and read from the copy."""
    member: str | None = None
    """Which member of a shard's sample is the image, by its ending, such as ``seg.png``; by default the only one with an ending of images."""
    tile: int | None = Field(default=None, ge=4)
    """Side of tiles, pixels; by default 32 of ``photos`` and 256 of ``tiles:``."""
    overlap: int = Field(default=0, ge=0)
    """Pixels that neighbouring tiles of ``tiles:`` share."""
    pages: str | None = None
    """Which images of a TIFF file ``tiles:`` cuts, counted from 0, such as "0,2-5"; by default those of its first series."""
    level: int = Field(default=0, ge=0)
    """Which level of the files' pyramids ``tiles:`` cuts; 0 is the full resolution."""
    per_class: int = Field(default=250, ge=1)
    """Training tiles of each photograph."""
    per_class_test: int = Field(default=60, ge=1)
    """Test tiles of each photograph."""
    tile_seed: int = 0
    """Seed of the tiles of ``photos``; it is not the run's, so that runs of several seeds see the same data."""
    broken_fraction: float = Field(default=0.02, ge=0, le=1)
    """The fraction of broken images above which a run stops."""


def words(settings: Mapping[str, Any]) -> list[str]:
    """A run's data as verbs that measure take them, quoted for a shell: the name, without ``@train`` so that its test images ask, and options."""
    name, split = divide(str(settings.get("name", "DATA")))
    plain = DataSpec().model_dump(mode="json")
    own = {key: settings[key] for key in plain if settings.get(key, plain[key]) != plain[key]}
    chosen = {key: value if isinstance(value, str) else json.dumps(value) for key, value in own.items()}
    said = name if split in (None, "train") else f"{name}@{split}"
    return [shlex.quote(said), *(f"--set {shlex.quote(f'data.{key}={value}')}" for key, value in chosen.items())]


def open(name: str, *, settings: DataSpec = DataSpec(), split: str | None = None) -> Source:  # noqa: B008
    """Open images by name.

    Args:
        name: ``photos``, a folder, an ``.npz`` or ``.npy``, ``shards:PATTERN``, ``tiles:FOLDER_OR_FILE``, or a torchvision data set, with ``@train``
            or ``@test`` where there are splits.
        settings: what the name leaves open.
        split: used where the name has no ``@``; by default the one for training, or everything where there are no splits.

    Raises:
        DataError: there is no such data, or no such split.
        SettingError: a setting does not fit the data.
    """
    name, said = divide(name)
    known, wanted = splits(name, settings), said or split
    if wanted is not None and wanted not in known and (known or wanted != "train"):
        raise DataError(_no_such_split(name, wanted, known))
    source = _open(name, settings, (wanted or known[0]) if known else None)
    if settings.channels not in (None, source.channels):
        raise SettingError(
            f"data.channels converts the images of folders and shards only; {name} has {source.channels} channels, got {settings.channels}"
        )
    if settings.dtype is not None and TYPES[settings.dtype] != source.dtype:
        raise SettingError(
            f"data.dtype converts the images of folders and shards only; {name} is {str(source.dtype).removeprefix('torch.')}, got {settings.dtype}"
        )
    if settings.labels is not None:
        table = read_table(Path(settings.labels).expanduser(), settings.label_column, settings.group_column)
        attached = attach(source.files if isinstance(source, TileSource) else source, table)
        if isinstance(source, TileSource):
            source.inherit()
        source.notes = (*source.notes, *attached.notes(settings.labels))
    return source


def given(source: Source, settings: DataSpec) -> Source:
    """A source from Python in place of a name.

    Raises:
        SettingError: a setting says how a name is to be opened.
    """
    plain = DataSpec()
    for key in DataSpec.model_fields.keys() - {"broken_fraction"}:
        if getattr(settings, key) != getattr(plain, key):
            raise SettingError(f"data.{key} says how a name is opened; {title(source)} is open, and is taken as it is")
    return source


def title(source: Source) -> str:
    """What a source from Python is called: by its class, or its dataset's."""
    return PYTHON + type(getattr(source, "dataset", source)).__name__


def splits(name: str, settings: DataSpec = DataSpec()) -> tuple[str, ...]:  # noqa: B008
    """The splits a name has, the one for training first; () where it has none.

    Raises:
        DataError: there is no such data.
    """
    name, _ = divide(name)
    path = Path(name).expanduser()
    if name == "photos":
        return ("train", "test")
    if name.startswith(SHARDS):
        return shard_splits(name.removeprefix(SHARDS))
    if name.startswith(TILES):
        path = Path(name.removeprefix(TILES)).expanduser()
        if not path.exists():
            raise DataError(_no_such_data(name.removeprefix(TILES), path))
        return folder_splits(path) if path.is_dir() else ()
    if name in SETS:
        return tuple(SETS[name][1])
    if path.is_dir():
        return folder_splits(path)
    if path.is_file() and path.suffix.lower() in ARRAYS:
        return array_splits(path)
    raise DataError(_no_such_data(name, path))


def divide(name: str) -> tuple[str, str | None]:
    """Take ``@train`` off a name; a path that exists as it is written is left alone."""
    front, at, back = name.rpartition("@")
    path = name.removeprefix(SHARDS).removeprefix(TILES)
    named = at and front and not set("/.*{") & set(back) if path != name else at and front
    return (front, back) if named and not Path(path).expanduser().exists() else (name, None)


def _open(name: str, settings: DataSpec, split: str | None) -> Source:
    path = Path(name).expanduser()
    if name == "photos":
        count = settings.per_class if split == "train" else settings.per_class_test
        return photo_tiles(split or "train", settings.tile or PHOTO_TILE, count, settings.tile_seed)
    if name.startswith(SHARDS):
        wanted = Wanted(settings.member, settings.label_column, settings.group_column)
        return open_shards(name.removeprefix(SHARDS), split, wanted, settings.root, settings.download, settings.channels, settings.dtype)
    if name.startswith(TILES):
        cut = Cut(settings.tile or SIDE, settings.overlap, settings.pages, settings.level)
        return open_tiles(name.removeprefix(TILES), split, cut, settings.channels, settings.dtype)
    if name in SETS:
        return open_set(name, split, settings.root, settings.download)
    if path.is_dir():
        return open_folder(path, split, settings.channels, settings.dtype)
    return open_arrays(path, split, settings.axes)


def _no_such_split(name: str, wanted: str, known: tuple[str, ...]) -> str:
    if known:
        return f"{name}@{wanted}: no such split; {did_you_mean(wanted, known)}"
    return f"{name} has no splits; give the {wanted} data by its own name, as a second folder or file"


def _no_such_data(name: str, path: Path) -> str:
    if name.startswith(PYTHON):
        return (
            f"{name} was given to gnothi.train from Python, where alone it is; gnothi.data.pack(source, FOLDER) makes shards of it that have a name"
        )
    if path.is_file():
        kind = (
            "an image is not data to learn from; give the folder it lies in" if path.suffix.lower() in EXTENSIONS else "a file must be .npz or .npy"
        )
        return f"{name}: {kind}"
    above = path.parent
    while not above.is_dir():
        path, above = above, above.parent
    siblings = {p.name: p for p in above.iterdir() if p.is_dir() or p.suffix.lower() in ARRAYS}
    near = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.5)
    if near:
        return f"{name}: no such folder or file; did you mean {siblings[near[0]]}?"
    if os.sep in name:
        return f"{name}: no such folder or file; {above} exists, {path.name} in it does not"
    return f"{name}: no such data, folder or file; {did_you_mean(name, ['photos', *SETS])}"

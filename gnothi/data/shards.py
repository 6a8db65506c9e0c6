"""``shards:PATTERN``: images in WebDataset tar files, on the disk or on a web server, by row number like any others."""

from __future__ import annotations

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gnothi.contracts import DataError, Source
from gnothi.data.arrays import MOST_CLASSES, finish, kept_type
from gnothi.data.decode import decode, header
from gnothi.data.folder import LOOKED_AT, folder_splits, natural, printable
from gnothi.data.forms import Form, agree, fit, form_of
from gnothi.data.index import Index, Wanted, build, cached
from gnothi.data.patterns import WEB, expand
from gnothi.data.remote import Remote, copy, look

THREADS = 16
"""That ask a server, or read headers."""
LOOKED_AT_REMOTE = 256
"""Headers that decide on the layout where each is a request."""
NUMPY = b"\x93NUMPY"


@dataclass(frozen=True)
class Local:
    """A tar file on the disk."""

    where: str
    size: int
    stamp: int
    """Time of change, nanoseconds."""

    def read(self, offset: int, size: int) -> bytes:
        """Some bytes. Nothing stays open, so threads and processes do not meet.

        Raises:
            DataError: they cannot be had, or the file is another one by now; the message lacks the name.
        """
        try:
            file = os.open(self.where, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}") from error
        try:
            data = os.pread(file, size, offset)
            state = os.fstat(file)
        finally:
            os.close(file)
        if (state.st_size, state.st_mtime_ns) != (self.size, self.stamp) or len(data) != size:
            raise DataError("is another file by now than it was when it was opened")
        return data

    def open(self) -> BinaryIO:
        """The whole as a file."""
        return open(self.where, "rb")

    def identity(self) -> tuple[Any, ...]:
        """Changes when the file does."""
        return (os.path.realpath(self.where), self.size, self.stamp)


class Stored(NamedTuple):
    """An image as it lies in a shard."""

    ending: str
    """Of its file, in lower case."""
    data: bytes


class ShardSource(Source):
    """Images of tar files: shards in the order given, samples in that of their file.

    A row is named by its shard and its member: ``part-00000.tar/cat/0413.jpg``. Nothing is held but where each image lies.

    Args:
        shards: the files.
        indices: of each.
        channels: for every image; by default what ``forms.agree`` says of the headers.
        dtype: likewise.

    Raises:
        DataError: there is no image, or none of those looked at can be read.
    """

    def __init__(self, shards: list[Local | Remote], indices: list[Index], channels: int | None = None, dtype: str | None = None) -> None:
        self.shards, self.titles = tuple(shards), _titles([shard.where for shard in shards])
        self.first = np.cumsum([0, *map(len, indices)])
        self.offsets, self.sizes = (np.concatenate([getattr(i, name) for i in indices]) for name in ("offsets", "sizes"))
        shifts = np.cumsum([0, *(len(i.names) for i in indices)])
        self._names = np.concatenate([i.names for i in indices])
        self._ends = np.concatenate([i.ends + shift for i, shift in zip(indices, shifts[:-1], strict=True)])
        self.notes = tuple(f"{title}: {note}" for title, index in zip(self.titles, indices, strict=True) for note in index.notes)
        if not len(self):
            raise DataError(f"{shards[0].where}{f' and {len(shards) - 1} more shards hold' if len(shards) > 1 else ' holds'} no images")
        self.labels, self.classes = _classes(indices)
        group = _joined([(i.group, i.group_words) for i in indices])
        if group[0].any():
            self.groups = np.array(group[1], dtype=object)[group[0]]  # each word once; text of a fixed width is as wide as the longest in every row
            for row in np.flatnonzero(group[0] == 0).tolist():
                self.groups[row] = f"alone: {self.name(row)}"
        self.layout = agree(self._looked_at(), channels, dtype)
        self.channels, self.dtype = self.layout.channels, self.layout.torch_dtype
        self._digest: str | None = None

    def __len__(self) -> int:
        return len(self.offsets)

    def image(self, row: int, shrink: int = 1) -> Tensor:
        try:
            data = self._bytes(row)
            pixels, form = _array(data) if data.startswith(NUMPY) else decode(data, shrink)
            return torch.from_numpy(fit(pixels, form, self.layout))
        except DataError as error:
            raise DataError(f"{self.name(row)}: {error}") from error

    def form(self, row: int) -> tuple[int, int, Form]:
        """Height, width and stored form of an image, from its header."""
        try:
            data = self._bytes(row)
            if not data.startswith(NUMPY):
                return header(data)
            pixels, form = _array(data)
            return pixels.shape[0], pixels.shape[1], form
        except DataError as error:
            raise DataError(f"{self.name(row)}: {error}") from error

    def shape(self, row: int) -> tuple[int, int]:
        return self.form(row)[:2]

    def name(self, row: int) -> str:
        return f"{self.titles[self.shard_of(row)]}/{self._member(row)}"

    def fingerprint(self) -> str:
        """Digest of the shards' names, sizes and times of change (of a server's: what it says of them), and of where each image lies."""
        if self._digest is None:
            digest = hashlib.sha256(repr(self.layout).encode())
            for title, shard in zip(self.titles, self.shards, strict=True):
                digest.update(f"{title}\0{shard.size}\0{shard.stamp}\n".encode())
            for part in (self._names, self._ends, self.offsets, self.sizes):
                digest.update(np.ascontiguousarray(part).data)
            self._digest = finish(digest, self)
        return self._digest

    def shard_of(self, row: int) -> int:
        """Which shard a row lies in."""
        return int(np.searchsorted(self.first, row, side="right")) - 1

    def stored(self, row: int) -> Stored:
        """The bytes of an image's file, as they are.

        Raises:
            DataError: they cannot be read.
        """
        try:
            return Stored(self._member(row).rpartition(".")[2].lower(), self._bytes(row))
        except DataError as error:
            raise DataError(f"{self.name(row)}: {error}") from error

    def _member(self, row: int) -> str:
        start = int(self._ends[row - 1]) if row else 0
        return self._names[start : int(self._ends[row])].tobytes().decode()

    def _bytes(self, row: int) -> bytes:
        return self.shards[self.shard_of(row)].read(int(self.offsets[row]), int(self.sizes[row]))

    def _looked_at(self) -> list[Form]:
        remote = any(isinstance(shard, Remote) for shard in self.shards)
        rows = np.unique(np.linspace(0, len(self) - 1, min(LOOKED_AT_REMOTE if remote else LOOKED_AT, len(self))).astype(np.int64))

        def look_at(row: int) -> Form | DataError:
            try:
                return self.form(row)[2]
            except DataError as error:
                return error

        with ThreadPoolExecutor(THREADS) as pool:
            seen = list(pool.map(look_at, rows.tolist()))
        forms = [form for form in seen if isinstance(form, Form)]
        if not forms:
            raise DataError(f"none of the {len(rows)} images looked at can be read; the first is {seen[0]}")
        return forms


def open_shards(
    name: str,
    split: str | None,
    wanted: Wanted,
    root: str,
    download: bool,
    channels: int | None = None,
    dtype: str | None = None,
) -> ShardSource:
    """Open the shards of a pattern.

    Args:
        name: what stands behind ``shards:``.
        split: one of ``shard_splits(name)``.
        wanted: which member is the image, and which fields the labels.
        root: the folder where copies of remote shards go.
        download: whether to copy them.
        channels: see ``ShardSource``.
        dtype: likewise.

    Raises:
        DataError: there is no such file, or one is not a whole tar file.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        shards = list(pool.map(lambda where: _shard(where, root, download), expand(name, split)))
        indices = list(pool.map(lambda shard: _index(shard, wanted), shards))
    return ShardSource(shards, indices, channels, dtype)


def shard_splits(name: str) -> tuple[str, ...]:
    """The splits of a folder of shards: its folders train, val, test, as of a folder of images."""
    path = Path(name).expanduser()
    return folder_splits(path) if path.is_dir() else ()


def _shard(where: str, root: str, download: bool) -> Local | Remote:
    if where.startswith(WEB):
        remote, parts = look(where)
        if not download and parts:
            return remote
        if not download:
            raise DataError(f"{where}: the server sends no parts of files; set data.download=true to copy the shards to {root}/shards first")
        where = str(copy(remote, Path(root).expanduser() / "shards"))
    state = os.stat(where)
    return Local(where, state.st_size, state.st_mtime_ns)


def _index(shard: Local | Remote, wanted: Wanted) -> Index:
    def make() -> Index:
        with shard.open() as file:
            return build(file, shard.size, wanted)

    try:
        return cached(shard.identity(), wanted, make)
    except DataError as error:
        raise DataError(f"{printable(shard.where)} {error}") from error


def _titles(paths: list[str]) -> tuple[str, ...]:
    """File names, or paths where two files have the same name."""
    names = [printable(os.path.basename(path.partition("?")[0] if path.startswith(WEB) else path)) for path in paths]
    return tuple(names) if len(set(names)) == len(names) else tuple(map(printable, paths))


def _joined(columns: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, list[str]]:
    """Columns of several files, numbered alike; 0 is the empty text."""
    place = {"": 0}
    parts = [np.array([place.setdefault(str(word), len(place)) for word in words], dtype=np.int64)[numbers] for numbers, words in columns]
    return np.concatenate(parts), list(place)


def _classes(indices: list[Index]) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Labels [N] and classes: the numbers of .cls where all are whole, named by the .json where it has one name a number; else the texts."""
    cls, numbers = _joined([(i.cls, i.cls_words) for i in indices])
    label, words = _joined([(i.label, i.label_words) for i in indices])
    if not cls.any() and not label.any():
        return None, None
    whole = all(n.isdecimal() and int(n) < MOST_CLASSES for n in numbers[1:])
    if cls.any() and whole:
        labels = np.array([-1, *map(int, numbers[1:])])[cls]
        pairs = {(int(a), int(b)) for a, b in zip(*np.unique(np.stack([labels, label]), axis=1), strict=True) if a >= 0 and b}
        names = {a: words[b] for a, b in pairs}
        if len(names) == len(pairs) == len(set(names.values())):
            return labels, tuple(names.get(i, str(i)) for i in range(int(labels.max()) + 1))
    column, words = (label, words) if label.any() else (cls, numbers)
    order = sorted(range(1, len(words)), key=lambda i: natural(words[i]))
    place = np.full(len(words), -1, dtype=np.int64)
    place[order] = np.arange(len(order))
    return place[column], tuple(words[i] for i in order)


def _array(data: bytes) -> tuple[np.ndarray, Form]:
    """[H, W, C] of an .npy file of [H, W] or [H, W, C], and its form."""
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # the reader of a broken header raises anything
        raise DataError(f"cannot be read: {' '.join(str(error).split())[:120]}") from error
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise DataError(f"must hold [H, W] or [H, W, C], got the shape {array.shape}")
    pixels = kept_type(array.reshape(*array.shape[:2], -1), "pixels")
    return pixels, form_of({1: "grey", 3: "rgb"}.get(pixels.shape[2], f"{pixels.shape[2]} channels"), pixels)

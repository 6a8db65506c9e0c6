"""``tiles:FOLDER_OR_FILE``: tiles of large TIFF files by row number, each read without the rest of its page."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gnothi.contracts import DataError, SettingError, Source
from gnothi.data.folder import FolderSource, images_in, printable, split_folders
from gnothi.data.forms import Form, agree, fit
from gnothi.data.regions import Page, pages_of, read

PREFIX = "tiles:"
SIDE = 256
"""Of a tile, where nobody says otherwise."""
ENDINGS = (".tif", ".tiff", ".svs", ".ndpi", ".scn", ".bif")


class Cut(NamedTuple):
    """How files are cut."""

    tile: int = SIDE
    """Side, pixels."""
    overlap: int = 0
    """Pixels that neighbours share."""
    pages: str | None = None
    """Numbers of a file's images, such as "0,2-5"; by default those of its first series."""
    level: int = 0
    """Of the pyramid."""


class Sheet(NamedTuple):
    """An image of a file, and where its tiles begin."""

    file: int
    number: int
    """Of the image in its file."""
    page: Page
    tops: tuple[int, ...]
    lefts: tuple[int, ...]


class TileSource(Source):
    """Tiles of the images of files: files in natural order, images by number, tiles row by row.

    Tiles lie ``tile - overlap`` apart, and those of the last row and column are moved inwards to end at the edge: every pixel is in a tile, and all
    tiles of an image of at least that size are equally large. The tiles of a file are a group, where there are several files and no other groups,
    so that no split divides a file. A file that cannot be opened has no tiles, and a note says so.

    Args:
        root: the folder.
        paths: files relative to it.
        cut: how to cut them.
        channels: for every tile; by default what ``forms.agree`` says of the headers.
        dtype: likewise.

    Raises:
        DataError: no file can be opened, or one has no such page.
    """

    def __init__(self, root: str, paths: list[str], cut: Cut, channels: int | None = None, dtype: str | None = None) -> None:
        self.root, self.cut, self.sheets, notes = root, cut, list[Sheet](), []
        for i, path in enumerate(paths):
            try:
                self.sheets += [_sheet(i, number, page, cut) for number, page in _chosen(pages_of(os.path.join(root, path), cut.level), cut.pages)]
            except DataError as error:
                notes.append(f"{printable(path)}: {error}")
        if not self.sheets:
            raise DataError(f"{root}: none of the {len(paths)} files can be cut into tiles; the first is {notes[0]}")
        self.notes, self.paths = tuple(notes), paths
        self.first = np.cumsum([0, *(len(s.tops) * len(s.lefts) for s in self.sheets)])
        layout = agree([s.page.form for s in self.sheets], channels, dtype)
        self.layout, self.channels, self.dtype = layout, layout.channels, layout.torch_dtype
        self.files = FolderSource(root, paths, layout)
        self.inherit()
        self._digest: str | None = None

    def inherit(self) -> None:
        """Take over the labels and groups of the files."""
        count, own = np.diff(self.first), [s.file for s in self.sheets]
        self.classes = self.files.classes
        self.labels = None if self.files.labels is None else np.repeat(self.files.labels[own], count)
        if self.files.groups is not None:
            self.groups = np.repeat(self.files.groups[own], count)
        elif len(set(own)) > 1:
            self.groups = np.repeat(np.array([printable(self.paths[i]) for i in own]), count)

    def __len__(self) -> int:
        return int(self.first[-1])

    def image(self, row: int, shrink: int = 1) -> Tensor:
        sheet, top, left = self._place(row)
        try:
            part = read(self._path(sheet), sheet.page, top, left, *self._stored(sheet))
            return torch.from_numpy(fit(*part, self.layout))
        except DataError as error:
            raise DataError(f"{self.name(row)}: {error}") from error

    def shape(self, row: int) -> tuple[int, int]:
        sheet = self._place(row)[0]
        height, width = self._stored(sheet)
        return (width, height) if sheet.page.turned else (height, width)

    def form(self, row: int) -> tuple[int, int, Form]:
        """Height, width and stored form of a tile."""
        return (*self.shape(row), self._place(row)[0].page.form)

    def name(self, row: int) -> str:
        """Its file, and in brackets the number of the image, the first row and the first column: ``slide.tif[0, 512, 1024]``."""
        sheet, top, left = self._place(row)
        return f"{printable(self.paths[sheet.file])}[{sheet.number}, {top}, {left}]"

    def fingerprint(self) -> str:
        """Digest of the files' names, sizes and times of change, and of how they are cut."""
        if self._digest is None:
            digest = hashlib.sha256(f"{self.files.fingerprint()} {tuple(self.cut)} {[(s.file, s.number, s.page) for s in self.sheets]}".encode())
            self._digest = digest.hexdigest()[:16]
        return self._digest

    def _place(self, row: int) -> tuple[Sheet, int, int]:
        number = int(np.searchsorted(self.first, row, side="right")) - 1
        sheet = self.sheets[number]
        down, across = divmod(row - int(self.first[number]), len(sheet.lefts))
        return sheet, sheet.tops[down], sheet.lefts[across]

    def _path(self, sheet: Sheet) -> str:
        return os.path.join(self.root, self.paths[sheet.file])

    def _stored(self, sheet: Sheet) -> tuple[int, int]:
        return min(self.cut.tile, sheet.page.height), min(self.cut.tile, sheet.page.width)


def open_tiles(name: str, split: str | None, cut: Cut, channels: int | None = None, dtype: str | None = None) -> TileSource:
    """Open what stands behind ``tiles:``: a TIFF file or a folder of them, or one of its splits.

    Raises:
        DataError: there is no such file.
        SettingError: the overlap is not smaller than the tile.
    """
    if cut.overlap >= cut.tile:
        raise SettingError(f"data.overlap must be smaller than data.tile, {cut.tile}, got {cut.overlap}")
    path = Path(name).expanduser()
    if path.is_file():
        return TileSource(str(path.parent), [path.name], cut, channels, dtype)
    folder = split_folders(path)[split] if split else path
    paths = images_in(folder, ENDINGS)
    if not paths:
        raise DataError(f"{folder} holds no files to cut into tiles: looked for {' '.join(ENDINGS)}")
    return TileSource(str(folder), paths, cut, channels, dtype)


def _sheet(file: int, number: int, page: Page, cut: Cut) -> Sheet:
    return Sheet(file, number, page, *(starts(side, cut.tile, cut.tile - cut.overlap) for side in (page.height, page.width)))


def starts(side: int, tile: int, step: int) -> tuple[int, ...]:
    """Where tiles begin along a side: ``step`` apart, the last moved inwards to end at the edge; one at 0 where the side is no longer than a tile."""
    last = max(side - tile, 0)
    return (*range(0, last, step), last)


def _chosen(series: list[list[Page | DataError]], pages: str | None) -> list[tuple[int, Page]]:
    """The images asked for, with their numbers in the file."""
    every = [page for own in series for page in own]
    numbers = numbers_of(pages) if pages is not None else list(range(len(series[0]) if series else 0))
    if not every or numbers[-1] >= len(every):
        raise DataError(f"has {len(every)} images, counted from 0; data.pages asks for {numbers[-1] if numbers else 0}")
    chosen = []
    for number in numbers:
        page = every[number]
        if isinstance(page, DataError):
            raise page
        chosen.append((number, page))
    return chosen


def numbers_of(pages: str) -> list[int]:
    """Numbers such as "0,2-5", ascending.

    Raises:
        SettingError: it is written otherwise.
    """
    found: set[int] = set()
    for part in pages.split(","):
        numbers = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part)
        first, last = (int(numbers[1]), int(numbers[2] or numbers[1])) if numbers else (1, 0)
        if last < first:
            raise SettingError(f'data.pages must be numbers from 0 such as "0,2-5", got {pages!r}')
        found |= set(range(first, last + 1))
    return sorted(found)

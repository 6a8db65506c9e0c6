"""A folder of images: a folder a class, flat or nested, of any mixture of sizes and forms."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gnothi.contracts import DataError, Source
from gnothi.data.arrays import finish
from gnothi.data.decode import EXTENSIONS, decode, header
from gnothi.data.forms import Form, Layout, agree, fit

SPLIT_FOLDERS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
LOOKED_AT = 4096
"""At most so many headers decide on the layout, spread evenly over the files."""


class FolderSource(Source):
    """Images of a folder, in natural order of their paths (``img2`` before ``img10``).

    Where every image lies in a subfolder and there are at least two of them, the subfolder directly under the root is the class.

    Args:
        root: the folder.
        paths: images relative to it, as ``images_in`` gives them.
        layout: the form that all images get.
        classes: names of the classes, where they are those of other splits too; by default those of ``class_names(paths)``.
    """

    def __init__(self, root: str, paths: list[str], layout: Layout, classes: tuple[str, ...] | None = None) -> None:
        self.root, self.paths, self.layout = root, paths, layout
        self.channels, self.dtype = layout.channels, layout.torch_dtype
        names = class_names(paths)
        if names is not None:
            self.classes = classes or names
            place = {name: number for number, name in enumerate(self.classes)}
            self.labels = np.array([place[printable(path.split(os.sep, 1)[0])] for path in paths], dtype=np.int64)
        self._digest: str | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, row: int, shrink: int = 1) -> Tensor:
        try:
            pixels, form = decode(os.path.join(self.root, self.paths[row]), shrink)
            return torch.from_numpy(fit(pixels, form, self.layout))
        except DataError as error:
            raise DataError(f"{self.name(row)}: {error}") from error

    def form(self, row: int) -> tuple[int, int, Form]:
        """Height, width and stored form of an image, from its header."""
        try:
            return header(os.path.join(self.root, self.paths[row]))
        except DataError as error:
            raise DataError(f"{self.name(row)}: {error}") from error

    def shape(self, row: int) -> tuple[int, int]:
        return self.form(row)[:2]

    def name(self, row: int) -> str:
        return printable(self.paths[row])

    def fingerprint(self) -> str:
        """Digest of paths, sizes in bytes and times of change; the pixels are not read, so a copy of the folder may get another one."""
        if self._digest is None:
            digest = hashlib.sha256(repr(self.layout).encode())
            for path in self.paths:
                state = os.stat(os.path.join(self.root, path))
                digest.update(f"{path}\0{state.st_size}\0{state.st_mtime_ns}\n".encode(errors="surrogateescape"))
            self._digest = finish(digest, self)
        return self._digest


def open_folder(root: Path, split: str | None = None, channels: int | None = None, dtype: str | None = None) -> FolderSource:
    """Open a folder, or one of its splits.

    Args:
        root: the folder.
        split: one of ``folder_splits(root)``.
        channels: for every image; by default what ``forms.agree`` says of the headers.
        dtype: likewise.

    Raises:
        DataError: there is no image, or none of those looked at can be read.
    """
    listed = {name: images_in(folder) for name, folder in split_folders(root).items()} if split else {}
    folder = split_folders(root)[split] if split else root
    paths = listed[split] if split else images_in(root)
    if not paths:
        raise DataError(_no_images(folder))
    named = [class_names(own) or () for own in listed.values()]
    classes = tuple(sorted({name for own in named for name in own}, key=natural)) or None
    # One layout for all splits: that of the first, which is the training one.
    first = next((name for name, own in listed.items() if own), None)
    look_folder, look = (split_folders(root)[first], listed[first]) if first else (root, paths)
    return FolderSource(str(folder), paths, look_at(str(look_folder), look, channels, dtype), classes)


def folder_splits(root: Path) -> tuple[str, ...]:
    """The splits of a folder: train, val, test (also training, valid, validation, testing); the one for training first.

    Subfolders are splits where one is a training one and either another is a split too or there is no other; else they are classes.
    """
    return tuple(split_folders(root))


def images_in(root: Path, endings: tuple[str, ...] = EXTENSIONS) -> list[str]:
    """Paths of the images under a folder, relative to it, in natural order. Hidden files and folders are left out; links are followed once round."""
    return sorted(_walk(str(root), "", (os.stat(root).st_ino, os.stat(root).st_dev), (), endings), key=natural)


def class_names(paths: list[str]) -> tuple[str, ...] | None:
    """The folders directly under the root, if every path has one and there are at least two."""
    tops = {path.split(os.sep, 1)[0] if os.sep in path else "" for path in paths}
    return tuple(sorted((printable(t) for t in tops), key=natural)) if "" not in tops and len(tops) >= 2 else None


def look_at(root: str, paths: list[str], channels: int | None = None, dtype: str | None = None) -> Layout:
    """The layout that the headers of at most ``LOOKED_AT`` images agree on."""
    rows = np.unique(np.linspace(0, len(paths) - 1, min(LOOKED_AT, len(paths))).astype(np.int64))
    forms, broken = [], None
    for row in rows:
        try:
            forms.append(header(os.path.join(root, paths[row]))[2])
        except DataError as error:
            broken = broken or f"{printable(paths[row])}: {error}"
    if not forms:
        raise DataError(f"{root}: none of the {len(rows)} images looked at can be read; the first is {broken}")
    return agree(forms, channels, dtype)


def natural(text: str) -> tuple[list[tuple[int, int, str]], str]:
    """Key of the order in which numbers count as numbers, whatever the case; ties by the text itself."""
    parts = re.split(r"(\d+)", text.casefold())
    return [(1, int(part), "") if i % 2 else (0, 0, part) for i, part in enumerate(parts)], text


def printable(path: str) -> str:
    """A path as one line of text that any terminal and file takes, with ``/`` between folders; what is no text or commands a terminal is escaped."""
    text = path.replace(os.sep, "/").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)


def _walk(folder: str, inside: str, here: tuple[int, int], above: tuple[tuple[int, int], ...], endings: tuple[str, ...]) -> Iterator[str]:
    if here in above:  # a link that leads back up
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                state = os.stat(entry.path)
                yield from _walk(entry.path, f"{inside}{entry.name}{os.sep}", (state.st_ino, state.st_dev), (*above, here), endings)
            elif entry.name.lower().endswith(endings):
                yield inside + entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split of ``folder_splits``."""
    folders = sorted((p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")), key=lambda p: natural(p.name))
    found: dict[str, Path] = {}
    for folder in folders:
        name = SPLIT_FOLDERS.get(folder.name.lower())
        if name is not None:
            found.setdefault(name, folder)
    if "train" not in found or (len(found) == 1 and len(folders) > 1):
        return {}
    return {name: found[name] for name in ("train", "val", "test") if name in found}


def _no_images(folder: Path) -> str:
    names = [name for _, _, files in os.walk(folder) for name in files if not name.startswith(".")]
    found = Counter(os.path.splitext(name)[1].lower() or "no extension" for name in names).most_common(4)
    what = ", ".join(f"{count} {extension}" for extension, count in found) or "no files at all"
    arrays = sorted(name for name in os.listdir(folder) if name.endswith((".npz", ".npy")))
    instead = f"; did you mean {folder / arrays[-1]}?" if arrays else ""
    return f"{folder} holds no images: looked for {' '.join(EXTENSIONS)}, found {what}{instead}"

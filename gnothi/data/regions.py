"""Parts of TIFF pages: no more is read and decoded than the tiles or strips of the file that a part touches."""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from gnothi.contracts import DataError
from gnothi.data import tiff
from gnothi.data.forms import Form, no_bomb

CHANNEL_AXES = "CSQ"
"""Axes of a series that are channels, as in a folder of images; the others are pages."""
MOST = 1 << 20
"""Planes of a series."""
OPEN = 8
"""Files that a process keeps open."""


class Page(NamedTuple):
    """One image of a file: a plane of a series, at one level of its pyramid."""

    series: int
    level: int
    pages: tuple[int, ...]
    """Of the level, one after the other the channels of this image."""
    height: int
    """As stored."""
    width: int
    turned: bool
    """Whether upright its height is its width."""
    form: Form


def pages_of(path: str, level: int = 0) -> list[list[Page | DataError]]:
    """The images of a file, by series; an error in place of one that cannot be cut (a slide's label, a page without such a level).

    Args:
        path: a TIFF file.
        level: of the pyramid, 0 for the full resolution.

    Raises:
        DataError: it is no TIFF; the message lacks the name.
    """
    with _lock, _errors():
        return [_listed(series, number, level) for number, series in enumerate(_opened(path).series)]


def read(path: str, page: Page, top: int, left: int, height: int, width: int) -> tuple[np.ndarray, Form]:
    """Read a part of an image.

    Args:
        path: the file.
        page: one of ``pages_of(path)``.
        top: first row, as stored.
        left: first column.
        height: of the part; it must lie inside.
        width: likewise.

    Returns:
        [height, width, C], or turned upright, and its form.

    Raises:
        DataError: it cannot be read; the message lacks the name.
    """
    with _errors():
        with _lock:
            level = _opened(path).series[page.series].levels[page.level]
            stored = [level.pages[i] for i in page.pages]
            if None in stored:
                raise DataError("lies in part in another file; save it as one")
            jobs = [(one, one.keyframe, one.dataoffsets, one.databytecounts, one.jpegtables) for one in stored]
            key = stored[0].keyframe
            decode = key.decode
        parts = [_part(path, *job, decode, (top, left, height, width)) for job in jobs]
        return tiff.finished(key, np.concatenate(parts, axis=2))


def _listed(series: Any, number: int, level: int) -> list[Page | DataError]:
    one = series.levels[min(level, len(series.levels) - 1)]
    shape = one.shape[: len(one.axes) - len(one.keyframe.axes)]
    if math.prod(shape) > MOST:
        return [DataError(f"declares {math.prod(shape):,} planes, more than {MOST:,}")]
    order = np.arange(math.prod(shape)).reshape(shape)
    channels = [i for i, axis in enumerate(one.axes[: len(shape)]) if axis in CHANNEL_AXES]
    order = np.moveaxis(order, channels, range(-len(channels), 0)).reshape(-1, math.prod(shape[i] for i in channels))  # [images, channels]
    try:
        if level >= len(series.levels):
            raise DataError(f"has no level {level} of a pyramid, only 0 to {len(series.levels) - 1}")
        with _errors():
            return [_page(series, number, level, tuple(pages)) for pages in order.tolist()]
    except DataError as error:
        return [error] * len(order)


def _page(series: Any, number: int, level: int, pages: tuple[int, ...]) -> Page:
    one, first = series.levels[level], series.keyframe
    key = one.keyframe
    tiff.check_colours(key)
    planes, depth, height, width, samples = key.shaped
    if depth != 1 or not one.axes.endswith(key.axes):
        raise DataError(f"has the axes {one.axes}, of which its pages hold {key.axes}; save a page a plane")
    if len(one.pages) <= pages[-1]:
        raise DataError(f"lists {len(one.pages)} of its planes (ImageJ does so beyond 4 GB); save it as OME-TIFF")
    tall, wide = _piece(key)
    if not key.is_final:
        no_bomb(wide, tall, samples * key.dtype.itemsize)
    if key.is_final and key.dataoffsets[0] + key.nbytes > key.parent.filehandle.size:
        raise DataError(f"declares {width} x {height} pixels, more than the file holds")
    if not key.is_final and planes * math.ceil(height / tall) * math.ceil(width / wide) > len(key.dataoffsets):
        raise DataError(f"declares {width} x {height} pixels, more than the {len(key.dataoffsets)} pieces that it lists")
    form = tiff.form_once_decoded(first, planes * samples * len(pages))
    return Page(number, level, pages, height, width, tiff.orientation(first) >= 5, form)


def _piece(key: Any) -> tuple[int, int]:
    """Height and width of what a page is stored in."""
    return (key.tilelength, key.tilewidth) if key.is_tiled else (min(key.rowsperstrip, key.imagelength), key.imagewidth)


def _part(path: str, page: Any, key: Any, offsets: Any, counts: Any, tables: Any, decode: Any, box: tuple[int, int, int, int]) -> np.ndarray:
    """[height, width, C] of one page's part, as stored."""
    top, left, height, width = box
    planes, _, full, across, samples = key.shaped
    if key.is_final:
        whole = np.memmap(path, key.parent.byteorder + key.dtype.char, "r", offsets[0], key.shaped)
        return _together(np.array(whole[:, 0, top : top + height, left : left + width], dtype=key.dtype))
    tall, wide = _piece(key)
    out = np.full((planes, height, width, samples), key.nodata, dtype=key.dtype)
    more = {"jpegtables": tables, "jpegheader": key.jpegheader} if key.compression in (6, 7, 34892, 33007) else {}
    down, columns = math.ceil(full / tall), math.ceil(across / wide)
    with open(path, "rb") as file:
        for plane in range(planes):
            for row in range(top // tall, (top + height - 1) // tall + 1):
                for column in range(left // wide, (left + width - 1) // wide + 1):
                    index = (plane * down + row) * columns + column
                    data = os.pread(file.fileno(), counts[index], offsets[index]) if counts[index] else None
                    piece, (_, _, y, x, _), _ = decode(data, index, **more)
                    if piece is not None:
                        _paste(out[plane], piece[0], y - top, x - left)
    return _together(out)


def _paste(out: np.ndarray, piece: np.ndarray, top: int, left: int) -> None:
    """Write what overlaps of a piece [h, w, C], whose corner is at (top, left) of ``out`` [H, W, C]."""
    y, x = max(top, 0), max(left, 0)
    inside = piece[y - top : out.shape[0] - top, x - left : out.shape[1] - left]
    out[y : y + inside.shape[0], x : x + inside.shape[1]] = inside


def _together(planes: np.ndarray) -> np.ndarray:
    """[S, H, W, C] to [H, W, S * C]."""
    s, h, w, c = planes.shape
    return planes.transpose(1, 2, 0, 3).reshape(h, w, s * c)


# ---- open files ----------------------------------------------------------------------------------
_lock = threading.Lock()
_files: OrderedDict[tuple[int, str, int], Any] = OrderedDict()


def _opened(path: str) -> Any:
    """An open file: a process's own, for those that fork share a file's position. Call it with the lock."""
    import tifffile

    tiff.silence()
    key = (os.getpid(), path, os.stat(path).st_mtime_ns)
    if key not in _files:
        _files[key] = tifffile.TiffFile(path, _multifile=False)  # what a file says of others is not followed
    _files.move_to_end(key)
    while len(_files) > OPEN:
        _files.popitem(last=False)[1].close()
    return _files[key]


@contextmanager
def _errors() -> Iterator[None]:
    """Whatever a decoder raises becomes a DataError in one line."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:  # decoders of broken files raise anything
        raise DataError(f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from error

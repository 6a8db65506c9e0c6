"""What became of the files or images of a source since a run began: which are new, which changed, how many are gone."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from gnothi.contracts import Source
from gnothi.data import ArraySource, FolderSource, ShardSource, TileSource
from gnothi.data.folder import printable
from gnothi.files import replace_file

FILE = "images.npy"
"""Its name in a run's folder."""
MOST = 1_000_000
"""No account is kept of more images of a folder or an array than these: 16 bytes each."""
NAMED = 3


def account(source: Source) -> np.ndarray | None:
    """Who the files or images are and how they are, [N, 2] uint64: of a path and its size and time of change, or of a row and its pixels.

    Shards, and files that are cut into tiles, count as such. None for sources that say neither, and for large ones.
    """
    if isinstance(source, ShardSource):
        rows = [(title.encode(), f"{shard.size} {shard.stamp}".encode()) for title, shard in zip(source.titles, source.shards, strict=True)]
    elif isinstance(source, TileSource) or (isinstance(source, FolderSource) and len(source) <= MOST):
        files = [(path, os.stat(os.path.join(source.root, path))) for path in source.paths]
        rows = [(os.fsencode(path), f"{state.st_size} {state.st_mtime_ns}".encode()) for path, state in files]
    elif isinstance(source, ArraySource) and len(source) <= MOST:
        rows = [(str(row).encode(), image.numpy().tobytes()) for row, image in enumerate(source.array)]
    else:
        return None
    return np.array([[_number(who), _number(how)] for who, how in rows], dtype=np.uint64).reshape(-1, 2)


def _number(text: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def write(path: Path, source: Source) -> None:
    """Keep the account of a source, where there is one."""
    found = account(source)
    if found is not None:
        replace_file(path, lambda temporary: _save(temporary, found))


def _save(path: Path, found: np.ndarray) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(found))
        file.write(found.data)


def told(path: Path, source: Source) -> str:
    """What differs between the account in a file and a source now, in words that follow a comma; "" where neither says it."""
    now = account(source)
    try:
        before = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return ""
    if now is None or before.dtype != np.uint64 or before.shape[1:] != (2,):
        return ""
    known = dict(before.tolist())
    new = [row for row, (who, _) in enumerate(now.tolist()) if who not in known]
    changed = [row for row, (who, how) in enumerate(now.tolist()) if known.get(who, how) != how]
    gone = len(known.keys() - set(now[:, 0].tolist()))
    said = [f"{len(rows)} {what}, such as {_names(source, rows)}" for rows, what in ((new, "new"), (changed, "changed")) if rows]
    return "; ".join(
        ["", *said, *([f"{gone} gone"] if gone else [])] if said or gone else ["", "the same images with other labels, classes or groups"]
    )


def _names(source: Source, rows: list[int]) -> str:
    if isinstance(source, ShardSource):
        return ", ".join(source.titles[row] for row in rows[:NAMED])
    return ", ".join(printable(source.paths[row]) if isinstance(source, TileSource) else source.name(row) for row in rows[:NAMED])

"""The store of features: what an encoder says of a source, on disk by fingerprint, computed once and memory-mapped."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gnothi import distributed
from gnothi.contracts import EncoderError, Source
from gnothi.data import Subset
from gnothi.encoders.encoder import BLOCK, Encoder, Progress, spread
from gnothi.files import replace_file, write_text

log = logging.getLogger(__name__)
SOME = 8
"""Images at most that are read again to see whether those that could not be read can be now."""


def folder(cache: str | Path | None = None) -> Path:
    """Where features lie: ``cache``, else ``$GNOTHI_CACHE``, else ``~/.cache/gnothi/features``."""
    return Path(cache or os.environ.get("GNOTHI_CACHE") or "~/.cache/gnothi/features").expanduser()


def features(
    encoder: Encoder,
    source: Source,
    rows: Sequence[int] | np.ndarray | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    shared: bool = False,
) -> np.ndarray:
    """The vectors of a source, from disk where they are there, else computed and kept.

    Args:
        encoder: whose vectors.
        source: of which images.
        rows: some of them, in this order; all by default.
        cache: the folder to keep them in; ``folder`` says the default.
        progress: told how many are done, where they are computed.
        shared: all processes of ``torchrun`` ask, and each computes its share; the first writes.

    Returns:
        [N, D] float32, memory-mapped and read-only; a row of NaN for each image that cannot be read.

    Raises:
        EncoderError: a process does not see what the first one wrote.
    """
    chosen = source if rows is None else Subset(source, rows)
    path, shape = _place(encoder, chosen, cache)
    found = _read(path, shape)
    everywhere = all(distributed.gather_objects(found is not None)) if shared else found is not None
    about = {"encoder": encoder.name, "encoder_fingerprint": encoder.fingerprint, "source_fingerprint": chosen.fingerprint(), "shape": shape}
    if found is not None and distributed.world() == 1:
        found = _looked_again(found, encoder, chosen, path, about)
    if not everywhere:
        blocks = spread(encoder, source, rows, progress) if shared else encoder.blocks(source, rows, progress)
        if shared and distributed.rank():
            deque(blocks, maxlen=0)
        else:
            _write(path, shape, blocks, about)
        if shared:
            distributed.barrier()
        found = _read(path, shape)
    if found is None:
        raise EncoderError(f"{path} is not seen by process {distributed.rank()}; set GNOTHI_CACHE to a folder that all processes share")
    return found


def kept(encoder: Encoder, source: Source, cache: str | Path | None = None) -> np.ndarray | None:
    """The vectors of a whole source where they are on disk, as ``features`` gives them; else None."""
    return _read(*_place(encoder, source, cache))


def _place(encoder: Encoder, source: Source, cache: str | Path | None) -> tuple[Path, tuple[int, int]]:
    return folder(cache) / f"{encoder.fingerprint}-{source.fingerprint()}.npy", (len(source), encoder.width(source.channels))


def _read(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    about = path.with_suffix(".json")
    if not (path.is_file() and about.is_file()):
        return None
    try:
        vectors: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        if vectors.shape == shape and vectors.dtype == np.float32 and digest(path) == json.loads(about.read_text())["digest"]:
            return vectors
    except (ValueError, KeyError, TypeError, RecursionError, MemoryError, OSError, EOFError):
        pass
    log.warning("%s is broken or was changed; its features are computed again", path)
    return None


def _looked_again(found: np.ndarray, encoder: Encoder, source: Source, path: Path, about: dict[str, Any]) -> np.ndarray:
    """Stored vectors, with those of images that can be read now: a server was away, or a file is whole again. Some tell whether that is so."""
    unread = np.flatnonzero(np.isnan(found).all(axis=1))
    if not len(unread) or np.isnan(encoder.embed_source(source, unread[:: -(-len(unread) // SOME)])).all():
        return found
    vectors = encoder.embed_source(source, unread)

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(found), BLOCK):
            block = np.array(found[start : start + BLOCK])
            here = (unread >= start) & (unread < start + BLOCK)
            block[unread[here] - start] = vectors[here]
            yield block

    _write(path, found.shape, blocks(), about)
    again = _read(path, found.shape)
    return found if again is None else again


def _write(path: Path, shape: tuple[int, int], blocks: Iterator[np.ndarray], about: dict[str, Any]) -> None:
    def fill(temporary: Path) -> None:
        # Written, not mapped: a full disk kills a process that writes to a mapping, and only refuses one that writes to a file.
        with temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
            for block in blocks:
                file.write(np.ascontiguousarray(block, dtype="<f4").data)

    replace_file(path, fill)
    write_text(path.with_suffix(".json"), json.dumps(about | {"digest": digest(path)}))


def digest(path: Path) -> str:
    """BLAKE2 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()

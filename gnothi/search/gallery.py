"""What is searched in: vectors with names and labels, from a file that ``gnothi embed`` wrote or from images through the store of features."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gnothi.contracts import EncoderError, GnothiError, Source
from gnothi.data import DataSpec
from gnothi.data import open as open_data
from gnothi.encoders import Encoder, features
from gnothi.encoders.encoder import Progress


@dataclass(frozen=True)
class Gallery:
    """Vectors of images, without those that cannot be read."""

    vectors: np.ndarray
    """[N, D] float32, memory-mapped where nothing is left out."""
    name: Callable[[int], str]
    """What a person calls an image, by its place among the vectors."""
    label: Callable[[int], str | None]
    """The name of its class, else its number; None where it has none."""
    rows: np.ndarray
    """[N] row numbers in the source."""
    source: Source | None
    """The images themselves; None where they cannot be had."""
    missing: str = ""
    """Why they cannot be had."""

    def __len__(self) -> int:
        return len(self.vectors)

    def find(self, name: str) -> int | None:
        """The place of an image by its name; None where there is none of this name."""
        return next((i for i in range(len(self)) if self.name(i) == name), None)


def gallery(encoder: Encoder, among: str | Source, settings: DataSpec = DataSpec(), progress: Progress | None = None) -> Gallery:  # noqa: B008
    """Open what is searched in.

    Args:
        encoder: whose vectors.
        among: images, by name or as a source, whose vectors come from the store of features or are computed and kept there; or a file that
            ``gnothi embed`` wrote (.parquet, .npz or .safetensors), whose vectors are held in memory.
        settings: of the data, where ``among`` is a name, and of the images that a file was made of.
        progress: told how many are embedded.

    Raises:
        EncoderError: the file was made by another encoder, or does not say by which.
        DataError: there is no such data.
    """
    if isinstance(among, str):
        path = Path(among).expanduser()
        if path.is_file() and (reader := READERS.get(path.suffix.lower())) is not None and (read := reader(path)) is not None:
            return _of_file(encoder, path, *read, settings)
        among = open_data(among, settings=settings)
    vectors = features(encoder, among, progress=progress)
    rows = np.flatnonzero(~np.isnan(vectors[:, 0]))
    whole = vectors if len(rows) == len(vectors) else vectors[rows]
    source = among
    return Gallery(whole, lambda i: source.name(int(rows[i])), lambda i: label_of(source, int(rows[i])), rows, source)


def label_of(source: Source, row: int) -> str | None:
    """The name of an image's class, else its number; None where it has none."""
    label = source.label(row)
    return None if label is None else source.classes[label] if source.classes is not None else str(label)


# ---- files of features ---------------------------------------------------------------------------
Read = tuple[np.ndarray, Sequence[str], Sequence[str | None], np.ndarray, dict[str, str]]
"""Vectors, names, labels, rows in the source, and what the file says of itself."""


def _of_file(
    encoder: Encoder, path: Path, vectors: np.ndarray, names: Sequence[str], labels: Sequence[str | None], rows: np.ndarray,
    about: dict[str, str], settings: DataSpec,
) -> Gallery:  # fmt: skip
    again = f"gnothi embed {encoder.name} DATA --out {path} makes it anew"
    if about.get("encoder_fingerprint") != encoder.fingerprint:
        made = f"{about.get('encoder', '?')} (fingerprint {about.get('encoder_fingerprint', '?')})"
        raise EncoderError(f"{path} was made by {made}, not by {encoder.name} ({encoder.fingerprint}); {again}")
    source, missing = _images(about, settings)
    return Gallery(vectors, names.__getitem__, labels.__getitem__, rows, source, missing)


def _images(about: dict[str, str], settings: DataSpec) -> tuple[Source | None, str]:
    """The images that a file was made of, or why they are not there."""
    name = about.get("source", "")
    if not name:
        return None, "the file of features does not say where its images lie"
    try:
        source = open_data(name, settings=settings)
    except GnothiError as error:
        return None, str(error)
    if source.fingerprint() != about.get("source_fingerprint"):
        return None, f"{name} is not as it was when the file of features was made of it"
    return source, ""


def _parquet(path: Path) -> Read:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path, columns=["name", "label", "class", "row", "embedding"])
        flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        names, labels, classes = (table[c].to_pylist() for c in ("name", "label", "class"))
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise EncoderError(f"{path} is not a table that gnothi embed wrote: {_short(error)}") from None
    about = {k.decode().removeprefix("gnothi."): v.decode() for k, v in (table.schema.metadata or {}).items()}
    return flat.reshape(len(table), -1), names, [_said(*pair) for pair in zip(classes, labels, strict=True)], table["row"].to_numpy(), about


def _npz(path: Path) -> Read | None:
    """None where it holds images."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if "embeddings" not in file:
                return None
            arrays = {k: file[k] for k in file.files}
        return _arrays(arrays, json.loads(str(arrays["about"])))
    except (ValueError, OSError, EOFError, KeyError) as error:
        raise EncoderError(f"{path} cannot be read: {_short(error)}") from None


def _safetensors(path: Path) -> Read:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            about = file.metadata() or {}
            arrays = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - it is no dictionary
        return _arrays(arrays | {k: np.array(json.loads(about[k]), dtype=np.str_) for k in ("names", "classes") if k in about}, about)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise EncoderError(f"{path} is no file that gnothi embed wrote: {_short(error)}") from None


def _arrays(arrays: dict[str, Any], about: dict[str, str]) -> Read:
    names, classes = arrays["names"].tolist(), arrays.get("classes", np.empty(0)).tolist()
    labels: list[str | None] = [None] * len(names)
    if "labels" in arrays:
        labels = [None if i < 0 else _said(classes[i] if classes else None, i) for i in arrays["labels"].tolist()]
    return arrays["embeddings"], names, labels, arrays["rows"], about


def _npy(path: Path) -> Read | None:
    """None where it holds images; vectors alone say neither whose they are nor what of."""
    try:
        flat = np.load(path, mmap_mode="r", allow_pickle=False).ndim == 2
    except (ValueError, OSError, EOFError):
        return None  # opened as data, which says what is wrong
    if flat:
        raise EncoderError(f"{path} holds vectors alone, without names and encoder; gnothi embed ENCODER DATA --out {path.stem}.parquet keeps them")
    return None


def _said(name: str | None, label: int | None) -> str | None:
    return name if name is not None else None if label is None else str(label)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:80]


READERS: dict[str, Callable[[Path], Read | None]] = {".parquet": _parquet, ".npz": _npz, ".safetensors": _safetensors, ".npy": _npy}

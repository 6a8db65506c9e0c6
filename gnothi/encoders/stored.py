"""``features:FILE``: vectors that lie in a file stand for an encoder, for the one source they were made of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from gnothi.contracts import EncoderError, Source, did_you_mean
from gnothi.encoders.encoder import Encoder, Images, Progress

ENDINGS = (".npy", ".parquet")
BLOCK = 4096
MOST_MISSING = 1_000_000
"""Images that a table may leave out beside as many as it holds; more is a broken number."""


class StoredEncoder(Encoder):
    """Vectors by row number.

    Args:
        name: ``features:FILE``, an ``.npy`` of [N, D] numbers, or a Parquet file that ``gnothi embed`` wrote, whose source is then checked, and
            named image by image where it is another.

    Raises:
        EncoderError: there is no such file, or it holds something else.
    """

    def __init__(self, name: str) -> None:
        self.name, self.path = name, Path(name.removeprefix("features:")).expanduser()
        if self.path.suffix.lower() not in ENDINGS:
            raise EncoderError(f"{name}: must be an .npy or .parquet file; {did_you_mean(self.path.suffix, ENDINGS)}")
        if not self.path.is_file():
            near = [str(p) for p in self.path.parent.glob("*") if p.suffix.lower() in ENDINGS] if self.path.parent.is_dir() else []
            raise EncoderError(f"{name}: no such file" + (f"; {did_you_mean(str(self.path), near)}" if near else ""))
        self.vectors, self.source_fingerprint, self.names = _npy(self.path) if self.path.suffix.lower() == ".npy" else _parquet(self.path)
        self.dim = self.vectors.shape[1]
        with self.path.open("rb") as file:
            self.fingerprint = hashlib.file_digest(file, "sha256").hexdigest()[:16]

    def embed(self, images: Images) -> Tensor:
        """Refuse: the file holds no network.

        Raises:
            EncoderError: always.
        """
        raise EncoderError(f"{self.name} holds the vectors of one source and cannot embed other images; name a run, an exported folder or timm:NAME")

    def blocks(self, source: Source, rows: Sequence[int] | np.ndarray | None = None, progress: Progress | None = None) -> Iterator[np.ndarray]:
        """The vectors of the source that the file was made of, [up to BLOCK, dim] each."""
        if len(source) != len(self.vectors):
            raise EncoderError(
                f"{self.name} holds {len(self.vectors)} vectors, this source has {len(source)} images{self._first(source)}; "
                "name the source they were made of"
            )
        if self.source_fingerprint not in (None, source.fingerprint()):
            raise EncoderError(
                f"{self.name} was made of other images (source {self.source_fingerprint}, this one is {source.fingerprint()}){self._first(source)}; "
                "embed them again"
            )
        rows = np.arange(len(source)) if rows is None else np.asarray(rows, dtype=np.int64)
        for start in range(0, len(rows), BLOCK):
            yield np.asarray(self.vectors[rows[start : start + BLOCK]], dtype=np.float32)
            if progress is not None:
                progress(min(start + BLOCK, len(rows)), len(rows))

    def _first(self, source: Source) -> str:
        """The first row at which the file names another image than the source; nothing where the names are alike or none are known."""
        known = ((row, name) for row, name in enumerate(self.names[: len(source)]) if name)
        found = next(((row, name) for row, name in known if name != source.name(row)), None)
        return "" if found is None else f", and row {found[0]} is {found[1]} there and {source.name(found[0])} here"


def _npy(path: Path) -> tuple[np.ndarray, None, list[str]]:
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(vectors, np.ndarray):
            raise ValueError("it is an archive")
    except Exception as error:  # noqa: BLE001 - the header is a Python literal, whose reader raises anything
        raise EncoderError(f"{path} is not a plain .npy file: {' '.join(str(error).split())[:80]}") from None
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        raise EncoderError(f"{path} must hold numbers of the shape [N, D], got {vectors.dtype} {vectors.shape}")
    return vectors, None, []


def _parquet(path: Path) -> tuple[np.ndarray, str | None, list[str]]:
    from pyarrow import compute, parquet

    try:
        known = [name for name in ("row", "name", "embedding") if name in parquet.read_schema(path).names]
        table = parquet.read_table(path, columns=known, memory_map=True)
        column = table["embedding"].combine_chunks()
        lengths = compute.list_value_length(column).to_numpy(zero_copy_only=False)
        if column.null_count or len(np.unique(lengths)) > 1:
            raise ValueError("its embeddings are not all of one length")
        vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1).astype(np.float32)
        rows = table["row"].to_numpy().astype(np.int64, casting="safe")
        about = {k.decode(): v.decode() for k, v in (parquet.read_metadata(path).metadata or {}).items() if k.startswith(b"gnothi.")}
        n = int(about.get("gnothi.source_images", rows.max(initial=-1) + 1))
        if not (len(rows) <= n <= MOST_MISSING + 2 * len(rows) and ((0 <= rows) & (rows < n)).all()):
            raise ValueError(f"rows from {rows.min(initial=0)} to {rows.max(initial=0)} of {n} images cannot be")
        if len(np.unique(rows)) != len(rows):
            raise ValueError("a row occurs twice")
        names = [""] * n
        for row, name in zip(rows.tolist(), table["name"].to_pylist() if "name" in known else [""] * len(rows), strict=True):
            names[row] = str(name or "")
    except Exception as error:  # noqa: BLE001 - pyarrow and NumPy raise anything about a broken table
        raise EncoderError(f"{path} holds no table with the columns row and embedding: {' '.join(str(error).split())[:80]}") from None
    digest = "".join(hashlib.blake2b(np.ascontiguousarray(x, kind).data, digest_size=16).hexdigest() for x, kind in ((rows, "<i8"), (vectors, "<f4")))
    if about.get("gnothi.digest", digest) != digest:
        raise EncoderError(f"{path} was altered since it was written; gnothi embed writes it again")
    everything = np.full((n, vectors.shape[1]), np.nan, dtype=np.float32)  # rows that are missing could not be read
    everything[rows] = vectors
    return everything, about.get("gnothi.source_fingerprint"), names

"""Write what an encoder says of a source to a file: Parquet, NumPy or safetensors, with names and labels."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gnothi import distributed
from gnothi.contracts import DataError, SettingError, Source, did_you_mean
from gnothi.data import DataSpec
from gnothi.data import open as open_data
from gnothi.encoders.encoder import Encoder, Progress, load, spread
from gnothi.files import replace_file

MOST_HEADER = 100_000_000
"""Bytes of text that readers of safetensors accept."""
Blocks = Iterator[tuple[np.ndarray, np.ndarray]]
"""Row numbers [B] and their vectors [B, D], of images that could be read."""


@distributed.together()
def embed(
    encoder: str | Encoder,
    source: str | Source,
    out: str | Path,
    *,
    settings: DataSpec = DataSpec(),  # noqa: B008
    device: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Embed a source and write a file, whole or not at all.

    Parquet is written block by block; the other formats hold all vectors in memory once. Under ``torchrun`` each process embeds its share, and the
    first one writes.

    Args:
        encoder: its name, or itself.
        source: its name, or itself.
        out: the file; its ending says the format: .parquet, .npy (vectors only), .npz or .safetensors.
        settings: of the data, where ``source`` is a name.
        device: where the encoder computes.
        progress: told how many are done.

    Returns:
        A summary of plain values: out, n, dim, encoder, both fingerprints, and ``broken``, the names of images that cannot be read.

    Raises:
        SettingError: the ending is none of these.
        DataError: no image can be read.
    """
    out = Path(out).expanduser()
    if out.suffix.lower() not in FORMATS:
        raise SettingError(f"--out must end in {', '.join(FORMATS)}, got {out.name!r}; {did_you_mean(out.suffix, FORMATS)}")
    name = source if isinstance(source, str) else ""
    encoder = load(encoder, device) if isinstance(encoder, str) else encoder
    source = open_data(source, settings=settings) if isinstance(source, str) else source
    if out.suffix.lower() == ".safetensors" and _header(source) > MOST_HEADER:
        said = f"--out: the names of {len(source)} images are more than a .safetensors file may hold ({MOST_HEADER} bytes)"
        raise SettingError(f"{said}; .parquet takes them")
    distributed.start(distributed.device_of(device))  # a wrong name is said before processes wait for each other
    broken: list[str] = []
    about = {"encoder": encoder.name, "encoder_fingerprint": encoder.fingerprint, "source_fingerprint": source.fingerprint()}
    written = about | {"source": name, "source_images": str(len(source))}
    dim = encoder.width(source.channels)
    blocks = _whole(encoder, source, broken, progress)
    if distributed.rank():
        deque(blocks, maxlen=0)
    else:
        replace_file(out, lambda temporary: FORMATS[out.suffix.lower()](temporary, source, dim, blocks, written))
    distributed.barrier()
    return {"out": str(out), "n": len(source) - len(broken), "dim": dim, **about, "broken": broken}


def _whole(encoder: Encoder, source: Source, broken: list[str], progress: Progress | None) -> Blocks:
    start = 0
    for vectors in spread(encoder, source, progress=progress):
        rows = np.arange(start, start + len(vectors))
        good = ~np.isnan(vectors[:, 0])
        broken.extend(source.name(int(row)) for row in rows[~good])
        yield rows[good], vectors[good]
        start += len(vectors)
    if len(broken) == len(source):
        raise DataError(f"none of the {len(source)} images can be read, the first is {source.name(0) if len(source) else 'missing'}")


def _header(source: Source) -> int:
    """Bytes that names and groups take as JSON in JSON, in which quotes are escaped."""
    texts = (text or "" for row in range(len(source)) for text in (source.name(row), *([source.group(row)] if source.groups is not None else [])))
    return sum(len(json.dumps(text, ensure_ascii=False).encode()) + 4 for text in texts)


def _columns(source: Source, rows: np.ndarray) -> dict[str, list[Any]]:
    """What goes beside the vectors of some rows; None where a row has no label, class or group."""
    labels = [source.label(int(row)) for row in rows]
    return {
        "name": [source.name(int(row)) for row in rows],
        "label": labels,
        "class": [None if label is None or source.classes is None else source.classes[label] for label in labels],
        "group": [source.group(int(row)) for row in rows],
        "row": rows.tolist(),
    }


def _parquet(path: Path, source: Source, dim: int, blocks: Blocks, about: dict[str, str]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    types = {"name": pa.string(), "label": pa.int64(), "class": pa.string(), "group": pa.string(), "row": pa.int64()}
    fields = [pa.field(name, kind) for name, kind in types.items()]
    schema = pa.schema([*fields, pa.field("embedding", pa.list_(pa.float32(), dim))], metadata={f"gnothi.{k}": v for k, v in about.items()})
    numbers, seen = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    with parquet.ParquetWriter(path, schema) as writer:
        for rows, vectors in blocks:
            numbers.update(rows.astype("<i8").tobytes())
            seen.update(np.ascontiguousarray(vectors, dtype="<f4").data)
            columns = [pa.array(values, types[name]) for name, values in _columns(source, rows).items()]
            flat = pa.array(np.ascontiguousarray(vectors).reshape(-1), pa.float32())
            writer.write_table(pa.table([*columns, pa.FixedSizeListArray.from_arrays(flat, dim)], schema=schema))
        writer.add_key_value_metadata({"gnothi.digest": numbers.hexdigest() + seen.hexdigest()})


def _together(source: Source, dim: int, blocks: Blocks) -> dict[str, np.ndarray]:
    """Everything at once: embeddings [N, D] float32, rows [N] int64, names [N] text; labels, classes and groups where there are any."""
    parts = list(blocks)
    rows = np.concatenate([np.empty(0, dtype=np.int64), *(r for r, _ in parts)])
    arrays = {"embeddings": np.concatenate([np.empty((0, dim), dtype=np.float32), *(v for _, v in parts)]), "rows": rows}
    arrays["names"] = np.array([source.name(int(row)) for row in rows], dtype=np.str_)
    if source.labels is not None:
        arrays["labels"] = source.labels[rows].astype(np.int64)
        arrays["classes"] = np.array(source.classes or [], dtype=np.str_)
    if source.groups is not None:
        arrays["groups"] = source.groups[rows].astype(np.str_)
    return arrays


def _npy(path: Path, source: Source, dim: int, blocks: Blocks, about: dict[str, str]) -> None:
    with path.open("wb") as file:
        np.save(file, _together(source, dim, blocks)["embeddings"], allow_pickle=False)


def _npz(path: Path, source: Source, dim: int, blocks: Blocks, about: dict[str, str]) -> None:
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, about=np.array(json.dumps(about)), **_together(source, dim, blocks))


def _safetensors(path: Path, source: Source, dim: int, blocks: Blocks, about: dict[str, str]) -> None:
    from safetensors.numpy import save

    arrays = _together(source, dim, blocks)
    text = {k: json.dumps(v.tolist(), ensure_ascii=False) for k, v in arrays.items() if v.dtype.kind == "U"}
    path.write_bytes(save({k: v for k, v in arrays.items() if v.dtype.kind != "U"}, metadata=about | text))


FORMATS: dict[str, Callable[[Path, Source, int, Blocks, dict[str, str]], None]] = {
    ".parquet": _parquet,
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
}

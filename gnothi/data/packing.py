"""Packing images into shards: WebDataset tar files with the bytes of the images' files, labels and groups, in an order drawn by a seed."""

from __future__ import annotations

import fcntl
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gnothi.contracts import DataError, SettingError, Source
from gnothi.data.arrays import Subset
from gnothi.data.folder import FolderSource
from gnothi.data.index import build
from gnothi.data.shards import ShardSource, Stored
from gnothi.files import replace_file, write_text
from gnothi.randomness import generator

PLAN = "pack.json"
"""The file that says how a folder of shards was made; with it, packing goes on where it was stopped."""
HELD = "held"
"""Its key for the number of images in each shard."""
MEGABYTES = 256.0
"""Of images in a shard, where nobody says otherwise."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Packed:
    """What packing did."""

    out: str
    images: int
    """In all shards."""
    shards: int
    found: int
    """Shards that were there already."""
    bytes: int
    left_out: tuple[str, ...]
    """What was wrong with each image that could not be read; of the shards written now."""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The same as text for a person."""
        there = f", {self.found} of them there before" if self.found else ""
        said = f"{self.images:,} images in {self.shards:,} shards ({self.bytes / 1e6:,.1f} MB){there}: shards:{self.out}"
        return [said, *(f"  left out: {message}" for message in self.left_out)]


def pack(
    source: Source,
    out: str | Path,
    *,
    name: str,
    images: int | None = None,
    megabytes: float | None = None,
    seed: int | None = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Packed:
    """Write the images of a source into ``part-00000.tar``, ``part-00001.tar``, ...

    Files are copied as they are, also broken ones, which whoever reads them names. Images that are no files become PNG where that keeps every bit,
    else .npy. A sample is named by its path without the ending; dots in its name become ``_``. Beside it stand ``.cls``, the number of its class,
    and ``.json``, with the name of the class (``label``) and the ``group``. A shard gets its name when it is whole.

    Args:
        source: the images.
        out: the folder of the shards.
        name: of the source, for the record.
        images: in a shard.
        megabytes: of images in a shard, 10^6 bytes; at least one image; 256 where neither is said. Pixels count where there are no files.
        seed: of the order; None for the source's own.
        overwrite: replace shards of other images or another order.
        progress: called with images done and images to do.

    Raises:
        SettingError: a limit cannot be, both are given, or the folder holds something else.
    """
    if images is not None and megabytes is not None:
        raise SettingError("--images and --size both say how large a shard is; give one of them")
    if (images is not None and images < 1) or (megabytes is not None and not 0 < megabytes < float("inf")):
        raise SettingError(f"a shard must hold at least one image, got {images if images is not None else megabytes}")
    rows = np.arange(len(source)) if seed is None else torch.randperm(len(source), generator=generator(seed, "pack")).numpy()
    parts = _parts(source, rows, images, megabytes or MEGABYTES)
    plan = {"source": name, "fingerprint": source.fingerprint(), "n": len(source), "seed": seed, "images": images, "megabytes": megabytes}
    out = Path(out).expanduser()
    paths = {out / f"part-{number:05d}.tar": part for number, part in enumerate(parts)}
    keys, left_out, found, done = _keys(source), list[str](), 0, 0
    with _owned(out):
        held = _begin(out, plan, overwrite)
        for path, part in paths.items():
            if path.is_file():
                found += 1
                held[path.name] = held[path.name] if path.name in held else _held(path)
            else:
                before = len(left_out)
                replace_file(path, lambda temporary, part=part: _write(temporary, source, part, keys, left_out))  # type: ignore[misc]
                held[path.name] = len(part) - (len(left_out) - before)
            done += len(part)
            if progress is not None:
                progress(done, len(source))
        write_text(out / PLAN, json.dumps({**plan, HELD: held}, indent=1))
        return Packed(str(out), sum(held.values()), len(paths), found, sum(p.stat().st_size for p in paths), tuple(left_out))


def _parts(source: Source, rows: np.ndarray, images: int | None, megabytes: float) -> list[np.ndarray]:
    """Rows of each shard."""
    if images is not None:
        return [rows[i : i + images] for i in range(0, len(rows), images)]
    ends, held = [], 0
    for i, row in enumerate(rows.tolist()):
        size = _size(source, row)
        if held and held + size > megabytes * 1e6:
            ends.append(i)
            held = 0
        held += size
    return np.split(rows, ends)


def _held(path: Path) -> int:
    """How many images a shard holds: of one that a process wrote which was killed before it could keep that."""
    try:
        with path.open("rb") as file:
            return len(build(file, path.stat().st_size))
    except DataError as error:
        raise DataError(f"{path} {error}") from error


def _begin(out: Path, plan: dict[str, Any], overwrite: bool) -> dict[str, int]:
    """Leave the folder with the plan, and with no shards but those of it; how many images they hold, as far as that was kept."""
    record = out / PLAN
    there = [p for p in out.iterdir() if not p.name.startswith(".")]
    try:
        old = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None
    except ValueError:
        old = None
    held = old.pop(HELD, {}) if isinstance(old, dict) else {}
    if there and old != plan:
        shards = [p for p in there if p.name == PLAN or (p.name.startswith("part-") and p.suffix == ".tar")]
        if not overwrite or len(shards) < len(there):
            differs = [f"{k} {v}, not {plan[k]}" for k, v in (old.items() if isinstance(old, dict) else ()) if k in plan and plan[k] != v]
            what = differs[0] if differs and shards == there else ""
            rule = f"was packed with {what}" if what else f"holds {(next((p for p in there if p not in shards), there[0])).name} already"
            way = "--overwrite replaces its shards, " if len(shards) == len(there) else ""
            raise SettingError(f"--out {out} {rule}; {way}--out takes another folder")
        for path in shards:
            path.unlink()
    held = {name: n for name, n in held.items() if (out / name).is_file() and isinstance(n, int)} if isinstance(held, dict) else {}
    for left in out.glob(".part-*.tmp"):
        left.unlink()  # half a shard, of a process that was killed
    write_text(record, json.dumps({**plan, HELD: held}, indent=1))
    return held


@contextmanager
def _owned(out: Path) -> Iterator[None]:
    """One process at a time in a folder of shards."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SettingError(f"--out {out} is being packed by another process; --out takes another folder") from None
            yield
    except (FileExistsError, NotADirectoryError):
        raise SettingError(f"--out {out} must be a folder, got a file") from None


def _write(path: Path, source: Source, rows: np.ndarray, keys: list[str], left_out: list[str]) -> None:
    with tarfile.open(path, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for row in rows.tolist():
            try:
                image = _stored(source, row)
            except DataError as error:
                left_out.append(str(error))
                continue
            _add(tar, f"{keys[row]}.{image.ending}", image.data)
            label, group = source.label(row), source.group(row)
            about = {} if group is None else {"group": group}
            if label is not None:
                _add(tar, f"{keys[row]}.cls", str(label).encode())
                about["label"] = source.classes[label] if source.classes is not None else str(label)
            if about:
                _add(tar, f"{keys[row]}.json", json.dumps(about, ensure_ascii=False).encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _keys(source: Source) -> list[str]:
    """A key a row, without dots after the last slash: a reader takes what follows the first dot for the ending."""
    keys = [_key(source, row) for row in range(len(source))]
    counts = Counter(keys)
    return [key if counts[key] == 1 else f"{key}-{row:08d}" for row, key in enumerate(keys)]


def _key(source: Source, row: int) -> str:
    name = source.name(row)
    if name.startswith("row "):
        return f"{row:08d}"
    if isinstance(source, ShardSource):
        name = name.partition("/")[2] or name
    folder, slash, base = name.rpartition("/")
    stem = base.rpartition(".")[0] or base
    return folder + slash + stem.replace(".", "_")


def _file(source: Source, row: int) -> str | None:
    """The file of an image, where it is one."""
    if isinstance(source, Subset):
        return _file(source.source, int(source.rows[row]))
    return os.path.join(source.root, source.paths[row]) if isinstance(source, FolderSource) else None


def _size(source: Source, row: int) -> int:
    path = _file(source, row)
    try:
        if path is not None:
            return os.stat(path).st_size
        if isinstance(source, ShardSource):
            return int(source.sizes[row])
        height, width = source.shape(row)
    except (OSError, DataError):
        return 0
    return height * width * source.channels * source.dtype.itemsize


def _stored(source: Source, row: int) -> Stored:
    """An image's bytes: of its file, or of a PNG or .npy file with the same pixels."""
    path = _file(source, row)
    if path is not None:
        try:
            with open(path, "rb") as file:
                return Stored(os.path.splitext(path)[1].lower().removeprefix("."), file.read())
        except OSError as error:
            raise DataError(f"{source.name(row)}: cannot be read: {error.strerror}") from error
    if isinstance(source, ShardSource):
        return source.stored(row)
    pixels, buffer = source.image(row).numpy().transpose(1, 2, 0), io.BytesIO()
    as_png = pixels.shape[2] == 1 and pixels.dtype != np.float32 or pixels.shape[2] == 3 and pixels.dtype == np.uint8
    if as_png:
        Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)).save(buffer, "PNG")
        return Stored("png", buffer.getvalue())
    np.save(buffer, np.ascontiguousarray(pixels), allow_pickle=False)
    return Stored("npy", buffer.getvalue())

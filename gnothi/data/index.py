"""An index of a tar file: where the image of each sample lies, and its labels; made in one pass over the headers and kept in a cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from gnothi.contracts import DataError, RunError
from gnothi.data.decode import EXTENSIONS
from gnothi.data.folder import printable
from gnothi.data.labels import GROUP_COLUMNS, LABEL_COLUMNS
from gnothi.files import replace_file

log = logging.getLogger(__name__)

VERSION = 2
"""Of what a cache file holds."""
ENDINGS = (*(e.removeprefix(".") for e in EXTENSIONS), "npy")
"""Of members that are images."""
KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
"""WebDataset's: the key reaches to the first dot of the name after the last slash."""
LARGEST = 1 << 20
"""Bytes of a .cls or .json that is read."""
LONGEST = 200
"""Letters of a label or group."""
PACKED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd"}
BLOCK = 512


class Wanted(NamedTuple):
    """What of a sample is wanted."""

    member: str | None = None
    """The ending of the image; by default the only one that is an image's."""
    label: str | None = None
    """The field of the .json member that holds the class; by default one of ``LABEL_COLUMNS``."""
    group: str | None = None


@dataclass(frozen=True)
class Index:
    """Where the images of a tar file lie, in the order of the file. Compact: some 40 bytes an image and its name."""

    names: np.ndarray
    """[sum of lengths] uint8: the names of the image members, one after the other, UTF-8."""
    ends: np.ndarray
    """[N] int64: where each name ends."""
    offsets: np.ndarray
    """[N] int64, bytes."""
    sizes: np.ndarray
    """[N] int64, bytes."""
    cls: np.ndarray
    """[N] int32: which of ``cls_words`` the .cls member says, 0 for none."""
    cls_words: np.ndarray
    """Distinct texts; the first is empty."""
    label: np.ndarray
    """The same of the label's field of the .json member."""
    label_words: np.ndarray
    group: np.ndarray
    group_words: np.ndarray
    notes: np.ndarray
    """Texts a person should read."""

    def __len__(self) -> int:
        return len(self.offsets)


def build(file: BinaryIO, length: int, wanted: Wanted = Wanted()) -> Index:  # noqa: B008
    """Walk through the headers of a tar file.

    Args:
        file: seekable, at its start.
        length: its bytes.
        wanted: what to look for.

    Raises:
        DataError: it is no tar file, compressed, or cut short; the message lacks the name.
    """
    rows: list[tuple[str, int, int, str, str, str]] = []
    without: list[str] = []
    unread: list[str] = []
    for key, members in _samples(file, length):
        image = _image(key, members, wanted.member)
        if image is None:
            without.append(printable(key))
            continue
        said = _label(file, key, members, wanted, unread)
        rows.append((printable(f"{key}.{image}"), members[image].offset_data, members[image].size, *said))
    notes = [f"{len(without)} samples have no image, such as {without[0]}"] if without else []
    notes += [f"{len(unread)} labels cannot be read, such as that of {unread[0]}"] if unread else []
    texts = [row[0].encode() for row in rows]
    cls, label, group = (_words([str(row[i]) for row in rows]) for i in (3, 4, 5))
    return Index(
        names=np.frombuffer(b"".join(texts), dtype=np.uint8),
        ends=np.cumsum([len(t) for t in texts], dtype=np.int64),
        offsets=np.array([row[1] for row in rows], dtype=np.int64),
        sizes=np.array([row[2] for row in rows], dtype=np.int64),
        cls=cls[0],
        cls_words=cls[1],
        label=label[0],
        label_words=label[1],
        group=group[0],
        group_words=group[1],
        notes=np.array(notes, dtype=np.str_),
    )


def _samples(file: BinaryIO, length: int) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Key and members by ending (in lower case) of each sample: members that follow each other and share a key."""
    current, members = "", dict[str, tarfile.TarInfo]()
    for member in _members(file, length):
        found = KEY.match(member.name)
        if found is None or (member.name.startswith("__") and member.name.endswith("__") and "/" not in member.name):
            continue
        key, ending = found[1], found[2].lower()
        if key != current and members:
            yield current, members
            members = {}
        if ending in members:
            raise DataError(f"holds {printable(member.name)} twice; a sample has one member of an ending")
        current, members[ending] = key, member
    if members:
        yield current, members


def _members(file: BinaryIO, length: int) -> Iterator[tarfile.TarInfo]:
    """Plain files of a tar file; links and what else a tar file may hold are left out."""
    start = file.read(2)
    if not start:
        raise DataError("is an empty file; fetch or pack it again")
    if start in PACKED:
        raise DataError(f"is compressed ({PACKED[start]}); images are read by their place in the file, so unpack it to a plain tar file first")
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps all of them
                if member.offset_data + member.size > length:
                    raise DataError(f"is cut short in {printable(member.name)}, after {length:,} bytes; fetch or pack it again")
                if member.isreg() and not member.issparse():
                    yield member
            end = tar.offset
    except DataError:
        raise
    except Exception as error:  # headers that were altered make tarfile raise anything
        raise DataError(f"is no whole tar file: {' '.join(str(error).split())}; fetch or pack it again") from error
    file.seek(end)
    block = file.read(BLOCK)
    if len(block) < BLOCK:  # every writer ends a tar file with blocks of zeros; tarfile does without
        raise DataError(f"is cut short after {length:,} bytes, before the end of the archive; fetch or pack it again")
    if block.strip(b"\0"):
        raise DataError(f"is broken at byte {end:,}, where a header should stand; fetch or pack it again")


def _image(key: str, members: dict[str, tarfile.TarInfo], wanted: str | None) -> str | None:
    """The ending of a sample's image; None where there is none."""
    if wanted is not None:
        return wanted.lower() if wanted.lower() in members else None
    found = [e for e in members if e in ENDINGS] or [e for e in members if e.rpartition(".")[2] in ENDINGS]
    if len(found) > 1:
        raise DataError(f"{printable(key)} has several images ({', '.join(found)}); say which one with data.member, such as data.member={found[0]}")
    return found[0] if found else None


def _label(file: BinaryIO, key: str, members: dict[str, tarfile.TarInfo], wanted: Wanted, unread: list[str]) -> tuple[str, str, str]:
    """What .cls says, and the fields of .json for label and group; empty where there is none."""
    cls = label = group = ""
    try:
        if "cls" in members:
            cls = _short(_read(file, members["cls"]).decode().strip())
        if "json" in members and isinstance(about := json.loads(_read(file, members["json"])), dict):
            label, group = _field(about, wanted.label, LABEL_COLUMNS), _field(about, wanted.group, GROUP_COLUMNS)
    except (ValueError, RecursionError, DataError):
        unread.append(printable(key))
    return cls, label, group


def _field(about: dict[str, Any], asked: str | None, usual: tuple[str, ...]) -> str:
    name = asked if asked is not None else next((word for word in usual if word in about), "")
    value = about.get(name)
    return _short(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _short(text: str) -> str:
    if len(text) > LONGEST:
        raise DataError("is too long")
    return text


def _read(file: BinaryIO, member: tarfile.TarInfo) -> bytes:
    if member.size > LARGEST:
        raise DataError("is too long")
    file.seek(member.offset_data)
    return file.read(member.size)


def _words(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """[N] int32 numbers of distinct texts, and the texts; 0 is the empty one."""
    place = {"": 0}
    numbers = np.array([place.setdefault(text, len(place)) for text in texts], dtype=np.int32)
    return numbers, np.array(list(place), dtype=np.str_)


# ---- the cache -----------------------------------------------------------------------------------
def folder() -> Path:
    """Where indices lie: ``$GNOTHI_CACHE/shards``, else ``~/.cache/gnothi/shards``."""
    return Path(os.environ.get("GNOTHI_CACHE") or "~/.cache/gnothi").expanduser() / "shards"


def cached(identity: tuple[Any, ...], wanted: Wanted, make: Callable[[], Index]) -> Index:
    """The index of a tar file from the cache, else made and kept there.

    Args:
        identity: changes when the file does: path or URL, size, time of change.
        wanted: what the index holds.
        make: makes it.
    """
    name = hashlib.blake2b(repr((VERSION, identity, tuple(wanted))).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    path = folder() / f"{name}.npz"
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return Index(**{f.name: file[f.name] for f in fields(Index)})
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s is broken (%s); it is made again", path, error)
    index = make()
    try:
        replace_file(path, lambda temporary: _save(temporary, index))
    except (OSError, RunError) as error:
        log.warning("%s cannot be kept (%s); it is made again next time", path, getattr(error, "strerror", None) or error)
    return index


def _save(path: Path, index: Index) -> None:
    with path.open("wb") as file:  # by name, NumPy would add an ending
        np.savez(file, allow_pickle=False, **{f.name: getattr(index, f.name) for f in fields(Index)})

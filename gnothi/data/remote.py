"""Parts of files on a web server, by range requests; whole files where one asks for a copy."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import io
import re
import threading
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from gnothi.contracts import DataError
from gnothi.files import replace_file

TRIES, FIRST_WAIT, TIMEOUT = 4, 0.5, 30.0
"""A request that fails for a reason that may pass is sent again after 0.5, 1 and 2 seconds."""
AHEAD = 1 << 18
"""Bytes read at a time while headers are looked for."""
RECENT = 1 << 26
"""Bytes of parts that a process remembers: a batch asks for the headers of all its images, then for the images."""
PASSING = (408, 425, 429, 500, 502, 503, 504)
T = TypeVar("T")


@dataclass(frozen=True)
class Remote:
    """A file on a server that sends parts."""

    where: str
    """Its URL."""
    size: int
    stamp: str
    """What the server says of its version: ETag, or the time of change."""

    def read(self, offset: int, size: int) -> bytes:
        """Some bytes; those of the last reads are remembered.

        Raises:
            DataError: they cannot be had, or the file is another one by now; the message lacks the name.
        """
        if size == 0:
            return b""
        key = (self.where, offset, size)
        found = _recent.get(key)
        if found is None:
            found = _again(self.where, lambda: self._fetch(offset, size))
            _recent.put(key, found)
        return found

    def open(self) -> BinaryIO:
        """The whole as a file that reads ahead a little."""
        return io.BufferedReader(_File(self), AHEAD)

    def identity(self) -> tuple[Any, ...]:
        """Changes when the file does."""
        return (self.where, self.size, self.stamp)

    def _fetch(self, offset: int, size: int) -> bytes:
        with _ask(self.where, {"Range": f"bytes={offset}-{offset + size - 1}"}) as answer:
            if answer.status != 206 or _total(answer) != self.size or _stamp(answer) != self.stamp:
                raise DataError("is another file by now than it was when it was opened")
            data: bytes = answer.read(size + 1)
        if len(data) != size:
            raise http.client.IncompleteRead(data, size - len(data))
        return data


def look(url: str) -> tuple[Remote, bool]:
    """A file on a server, and whether the server sends parts.

    Raises:
        DataError: it cannot be reached; the message starts with the URL.
    """

    def ask() -> tuple[Remote, bool]:
        with _ask(url, {"Range": "bytes=0-0"}) as answer:
            parts = answer.status == 206
            total = _total(answer) if parts else int(answer.headers.get("Content-Length") or -1)
            return Remote(url, total, _stamp(answer)), parts and total >= 0

    return _again(url, ask)


def copy(remote: Remote, folder: Path) -> Path:
    """A copy of a file in a folder, fetched unless it is there; one process at a time fetches it.

    Raises:
        DataError: it cannot be fetched whole.
    """
    version = hashlib.blake2b(repr(remote.identity()).encode(), digest_size=8).hexdigest()
    path = folder / version / (remote.where.partition("?")[0].rstrip("/").rpartition("/")[2] or "shard.tar")
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_file():
            _again(remote.where, lambda: replace_file(path, lambda temporary: _copy(remote, temporary)))
    return path


def _copy(remote: Remote, path: Path) -> None:
    done = 0
    with _ask(remote.where, {}) as answer, path.open("wb") as file:
        while block := answer.read(1 << 20):
            done += file.write(block)
    if remote.size not in (-1, done):
        raise http.client.IncompleteRead(b"", remote.size - done)


def _ask(url: str, headers: dict[str, str]) -> Any:
    return urllib.request.urlopen(urllib.request.Request(url, headers={"Accept-Encoding": "identity", **headers}), timeout=TIMEOUT)


def _again(url: str, act: Callable[[], T]) -> T:
    """Act, some times if need be."""
    for left in range(TRIES - 1, -1, -1):
        try:
            return act()
        except urllib.error.HTTPError as error:
            error.close()
            if left == 0 or error.code not in PASSING:
                raise DataError(f"{url}: the server says {error.code} {error.reason}") from error
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
            if left == 0 or isinstance(error, ValueError):
                reason = getattr(error, "reason", None) or error or type(error).__name__
                raise DataError(f"{url} cannot be reached: {' '.join(str(reason).split())}") from error
        time.sleep(FIRST_WAIT * 2 ** (TRIES - 1 - left))
    raise AssertionError("unreachable")


def _total(answer: Any) -> int:
    """Bytes of the whole file, as an answer with a part of it says; -1 where it does not."""
    found = re.fullmatch(r"bytes \d+-\d+/(\d+)", answer.headers.get("Content-Range") or "")
    return int(found[1]) if found else -1


def _stamp(answer: Any) -> str:
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""


class _File(io.RawIOBase):
    """A remote file as a seekable one."""

    def __init__(self, remote: Remote) -> None:
        self.remote, self.at = remote, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.remote.size}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self.remote.size - self.at))
        if size:
            buffer[:size] = _again(self.remote.where, lambda: self.remote._fetch(self.at, size))
        self.at += size
        return size


class _Recent:
    """The parts read last, up to ``RECENT`` bytes."""

    def __init__(self) -> None:
        self.lock, self.held, self.bytes = threading.Lock(), OrderedDict[tuple[str, int, int], bytes](), 0

    def get(self, key: tuple[str, int, int]) -> bytes | None:
        with self.lock:
            return self.held.get(key)

    def put(self, key: tuple[str, int, int], data: bytes) -> None:
        with self.lock:
            self.bytes += len(data) - len(self.held.pop(key, b""))
            self.held[key] = data
            while self.bytes > RECENT:
                self.bytes -= len(self.held.popitem(last=False)[1])


_recent = _Recent()

"""For tests of hostile input: what may come of a case, files to spoil, and how to spoil them."""

from __future__ import annotations

import io
import pickle
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from gnothi.cli.root import one_line
from gnothi.contracts import GnothiError
from gnothi.randomness import generator

SECONDS = 60
"""A case that takes longer hangs."""


@contextmanager
def bounded() -> Iterator[None]:
    """Fails what does not come to an end."""

    def late(signum: int, frame: FrameType | None) -> None:
        raise AssertionError(f"no end after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def capped(more: int = 4 << 30) -> Iterator[None]:
    """Memory that is asked for beyond so many more bytes is refused; without a bound the system would end the process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def outcome(action: Callable[[], Any], typed: bool = False) -> str | None:
    """None where an action gives a result, else the one line of an error of ours; any other error fails the test.

    A system's error that names its file, and the lack of memory, are told by the command line in a line of their own, and so is what a person
    ``typed``, which may hold a line break.
    """
    with bounded():
        try:
            action()
            return None
        except GnothiError as error:
            said = str(error)
        except OSError as error:
            assert error.filename is not None, repr(error)
            said = f"{error.filename!r}: {error.strerror}"
        except MemoryError:
            said = "out of memory"
        except RuntimeError as error:  # PyTorch's own word for it, which the command line knows
            assert "can't allocate memory" in str(error), repr(error)
            said = "out of memory"
    line = one_line(said) if typed else said
    assert line.strip() and "\n" not in line and "\r" not in line, repr(said)
    return line


def spoilt(raw: bytes, case: int, purpose: str, others: tuple[bytes, ...] = ()) -> bytes:
    """Bytes that were cut, overwritten, repeated, left out or mixed with those of another file, by the number of the case."""
    g = generator(0, purpose, case)
    data = bytearray(raw)

    def at(n: int) -> int:
        return int(torch.randint(max(n, 1), (), generator=g))

    for _ in range(1 + at(4)):
        place, length = at(len(data)), 1 + at(12)
        kind = at(7)
        if kind == 0:
            data = data[:place]
        elif kind == 1 and data:
            data[place] ^= 1 << at(8)
        elif kind == 2:
            data[place : place + length] = bytes(at(256) for _ in range(length))
        elif kind == 3:
            data[place : place + 4] = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f")[at(4)]
        elif kind == 4:
            data[place:place] = data[place : place + length] * (1 + at(50))
        elif kind == 5:
            del data[place : place + length]
        elif others:
            other = others[at(len(others))]
            data[place:] = other[min(place, len(other)) :]
    return bytes(data)


def everything(root: Path) -> dict[str, tuple[int, int]]:
    """Every path under a folder, with its size and its time of change."""
    return {str(p.relative_to(root)): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in sorted(root.rglob("*"))}


class Evil:
    """A pickle of it creates a file when it is opened."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.proof), "w")


def pickles(proof: Path) -> dict[str, bytes]:
    """What creates the proof when it is unpickled: bare, as NumPy saves objects, and as torch saves them."""
    evil = Evil(proof)
    array, archive, saved = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(array, np.array([evil] * 5, dtype=object), allow_pickle=True)
    np.savez(archive, images=np.array([evil] * 5, dtype=object))
    torch.save({"weights": evil}, saved)
    return {"bare": pickle.dumps(evil), "npy": array.getvalue(), "npz": archive.getvalue(), "torch": saved.getvalue()}


def npz(compressed: bool = False, **arrays: Any) -> bytes:
    out = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(out, **arrays)
    return out.getvalue()


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()

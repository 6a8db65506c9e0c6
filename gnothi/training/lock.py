"""One run at a time in a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gnothi import distributed
from gnothi.contracts import SettingError

LOCK = ".lock"
_held: set[IO[str]] = set()


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """One process (or one group of them) at a time in a run's folder.

    The lock goes with the process, however that ends; its loader processes do not hold it.

    Raises:
        SettingError: the folder is in use, or cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / LOCK).open("a")
    except OSError as error:
        raise SettingError(f"--out {folder}: cannot be written to ({(error.strerror or str(error)).lower()})") from None
    with opened as lock:
        if distributed.rank():
            yield
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingError(f"{folder} is in use by another run; --out takes another folder") from None
        lock.truncate(0)
        lock.write(distributed.job())
        lock.flush()
        _held.add(lock)
        try:
            yield
        finally:
            _held.discard(lock)


def restarted(folder: Path) -> bool:
    """Whether ``torchrun`` started this process anew, and was at work in the folder before: such a run goes on unasked."""
    return distributed.restarted() and (folder / LOCK).is_file() and (folder / LOCK).read_text(encoding="utf-8") == distributed.job()


def _let_go() -> None:
    # A forked child shares its parent's lock, and would hold it after the parent's death.
    for lock in _held:
        lock.close()


os.register_at_fork(after_in_child=_let_go)

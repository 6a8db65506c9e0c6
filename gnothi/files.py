"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

from gnothi.contracts import RunError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where a file cannot grow; writers of their own (NumPy's) say nothing that has a number."""


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under another name, flush it to the disk, then give it its own: a reader sees the old one or the new one, whole.

    Raises:
        RunError: the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        numpys = type(error) is OSError and error.errno is None  # a server's errors have no number either, but classes of their own
        if not numpys and error.errno not in FULL:
            raise
        why = (error.strerror or str(error)).lower()
        raise RunError(f"{path} cannot be written: {why}; nothing that was there is lost, make room and go on") from error
    finally:
        temporary.unlink(missing_ok=True)


def replace_folder(folder: Path, to: Path, aside: Path) -> None:
    """Give a folder the name of another, which stands at ``folder`` or ``aside`` then.

    At once where the system can let two names change places (renameat2 of Linux). Elsewhere a process that is killed between two renames leaves
    nothing at ``to``, and what was there at ``aside``.
    """
    exchange = getattr(ctypes.CDLL(None), "renameat2", None)
    here, both = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if to.exists():
        if exchange is not None and exchange(here, os.fsencode(folder), here, os.fsencode(to), both) == 0:
            return
        to.rename(aside)
    folder.rename(to)


def write_text(path: Path, text: str) -> None:
    """Replace a text file, whole or not at all."""
    replace_file(path, lambda temporary: temporary.write_bytes(text.encode()))

"""Files that are written whole or not at all."""

from __future__ import annotations

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
        if error.errno not in (None, *FULL):
            raise
        why = (error.strerror or str(error)).lower()
        raise RunError(f"{path} cannot be written: {why}; nothing that was there is lost, make room and go on") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file, whole or not at all."""
    replace_file(path, lambda temporary: temporary.write_bytes(text.encode()))

"""The settings of a run on the disk: sealed and written twice, so that a copy that was cut short or altered is noticed and the other one used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gnothi.contracts import RunError
from gnothi.files import write_text
from gnothi.training.checkpoint import sealed, whole

NAME, COPY = "spec.json", ".spec.json"


def write(folder: Path, record: dict[str, Any]) -> None:
    """Write what a run was resolved to, and its copy."""
    text = json.dumps(sealed(record), indent=1)
    for name in (COPY, NAME):
        write_text(folder / name, text)


def read(folder: Path, warn: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """What ``write`` wrote; ``warn`` hears where it was the copy.

    Raises:
        RunError: neither can be used.
    """
    try:
        return _one(folder / NAME)
    except RunError as error:
        try:
            record = _one(folder / COPY)
        except RunError:
            raise error from None
        warn(f"{error}; its copy {COPY} is used")
        return record


def _one(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {type(error).__name__} {' '.join(str(error).split())[:80]}") from None
    if not isinstance(record, dict):
        raise RunError(f"{path} is not a run's: it holds no object")
    if not whole(record):
        raise RunError(f"{path} was altered since it was written")
    return record

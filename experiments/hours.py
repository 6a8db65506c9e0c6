"""What experiments of many hours share: mistakes are said before anything trains, runs go on, and one that diverges is a result."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from gnothi.contracts import DataError, GnothiError, RunError, SettingError, Source, did_you_mean
from gnothi.data import open as open_data


def usable(data: str, said: str, channels: int | None = None, labels: bool = True) -> Source:
    """Open images, many of which are needed only hours later.

    Args:
        data: a name that gnothi opens.
        said: what the command line calls them.
        channels: of the images that train.
        labels: whether something is measured on them.

    Raises:
        DataError: they cannot be used.
    """
    try:
        source = open_data(data)
    except GnothiError as error:
        raise DataError(f"{said}: {error}") from None
    if labels and (source.labels is None or not (source.labels >= 0).any()):
        raise DataError(f"{said} {data} must have labels, by which something is measured; it has none")
    if channels not in (None, source.channels):
        raise DataError(f"{said} {data} must have {channels} channels, as the images that train have, got {source.channels}")
    return source


@contextlib.contextmanager
def one_at_a_time(results: Path) -> Iterator[None]:
    """Read results and write them again while no other process of this machine does: arms may run side by side."""
    name = hashlib.sha256(str(results.resolve()).encode()).hexdigest()[:16]
    with (Path(tempfile.gettempdir()) / f"gnothi-results-{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def refuse(arm: str, known: Iterable[str]) -> None:
    """Raise a SettingError for an arm that is none of the known ones."""
    known = list(known)
    if arm not in known:
        raise SettingError(f"there is no arm {arm!r}; {did_you_mean(arm, known)}")


def diverged(why: RunError) -> str:
    """What stands in the results in the place of a run that diverged; another matter, such as a full disk, is raised again."""
    if why.__cause__ is not None:
        raise why
    return str(why)


def threads_of(run: Path, asked: int) -> int:
    """Threads that a run was begun with, for it goes on with no others; of one that is not there those that are asked."""
    path = run / "spec.json"
    return int(json.loads(path.read_text())["settings"]["training"]["threads"]) if path.exists() else asked

"""The files and URLs that a pattern of shards stands for: braces, globs, folders, lists."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

from gnothi.contracts import DataError
from gnothi.data.folder import natural, split_folders

PREFIX = "shards:"
WEB = ("http://", "https://")
MOST = 100_000
"""Files that a pattern may stand for."""


def expand(pattern: str, split: str | None = None) -> list[str]:
    """The files and URLs that a pattern stands for, in natural order of what each part of it says.

    ``{000..009}`` counts, ``{a,b}`` lists, ``*`` and ``?`` match names on the disk, ``::`` stands between patterns, a folder is all ``.tar`` in it.

    Raises:
        DataError: there are none.
    """
    return [where for part in pattern.split("::") for where in _expanded(part, split)]


def _expanded(pattern: str, split: str | None) -> list[str]:
    if "://" in pattern or pattern.startswith("pipe:"):
        if not pattern.startswith(WEB):
            raise DataError(f"{PREFIX}{pattern}: shards are files or http:// and https:// URLs; copy others to the disk first")
        if set("*[") & set(pattern.partition("?")[0]):
            raise DataError(f"{PREFIX}{pattern}: a server does not list its files; write their numbers, such as part-{{00000..00009}}.tar")
        return braces(pattern)
    path = Path(pattern).expanduser()
    if path.is_dir():
        inside = split_folders(path)[split] if split else path
        found = sorted((str(p) for p in inside.glob("*.tar") if not p.name.startswith(".")), key=natural)
        if not found:
            raise DataError(f"{inside} holds no .tar files; gnothi pack DATA --out FOLDER makes them of images")
        return found
    if path.exists():
        return [str(path)]
    files = [where for part in braces(str(path)) for where in (sorted(glob.glob(part), key=natural) if glob.has_magic(part) else [part])]
    missing = [where for where in files if not os.path.isfile(where)]
    if not files or missing:
        raise DataError(_no_such_shard(pattern, missing, len(files)))
    return files


def braces(text: str) -> list[str]:
    """What ``{000..009}`` and ``{a,b}`` in a text stand for, as a shell does it; braces with neither inside are left alone.

    Raises:
        DataError: for more than ``MOST``.
    """
    for found in re.finditer(r"\{([^{}]*)\}", text):
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
        if numbers is None and "," not in found[1]:
            continue
        if numbers is not None:
            first, last = int(numbers[1]), int(numbers[2])
            width = max(map(len, numbers.groups())) if any(n.startswith("0") and len(n) > 1 for n in numbers.groups()) else 0
            if abs(last - first) >= MOST:
                raise DataError(f"{PREFIX}{text} stands for {abs(last - first) + 1:,} files, more than {MOST:,}")
            step = 1 if last >= first else -1
            choices: Iterable[str] = (f"{n:0{width}d}" for n in range(first, last + step, step))
        else:
            choices = found[1].split(",")
        every: list[str] = []
        for choice in choices:
            every += braces(text[: found.start()] + choice + text[found.end() :])
            if len(every) > MOST:
                raise DataError(f"{PREFIX}{text} stands for more than {MOST:,} files")
        return every
    return [text]


def _no_such_shard(pattern: str, missing: list[str], n: int) -> str:
    if not missing:
        return f"{PREFIX}{pattern}: no file matches"
    path = Path(missing[0])
    beside = [str(p) for p in path.parent.glob("*.tar")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(missing[0], beside, n=1, cutoff=0.5)
    some = f" and {len(missing) - 1} more of {n}" if len(missing) > 1 else ""
    return f"{missing[0]}{some}: no such file" + (f"; did you mean {near[0]}?" if near else "")

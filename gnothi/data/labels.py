"""Labels and groups from a CSV beside the images."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gnothi.contracts import DataError, SettingError, Source, did_you_mean
from gnothi.data.folder import FolderSource, natural, printable

LABEL_COLUMNS, GROUP_COLUMNS = ("label", "class", "target"), ("group", "patient", "slide", "site")


class Table(NamedTuple):
    """What a CSV says, by the name in its first column."""

    path: Path
    labels: dict[str, str] | None
    groups: dict[str, str] | None
    lines: dict[str, int]
    """The line each name stands in."""


class Attached(NamedTuple):
    """How a CSV met a source."""

    without_row: int
    """Images that the CSV does not name."""
    unknown: tuple[str, ...]
    """Names in the CSV that no image has."""

    def notes(self, file: str) -> tuple[str, ...]:
        """What a person should know of it, a line each."""
        missing = (f"{self.without_row} images have no row in {file}: no label, and a group of their own",) if self.without_row else ()
        names = ", ".join(self.unknown[:3])
        return missing + ((f"{len(self.unknown)} names in {file} are no image's here, such as {names}",) if self.unknown else ())


def read_table(path: Path, label_column: str | None = None, group_column: str | None = None) -> Table:
    """Read a CSV: UTF-8 (a byte order mark is fine), comma, semicolon or tab, a header line, file names or relative paths in the first column.

    Args:
        path: the file.
        label_column: holds the class; by default the one called label, class or target, or the second of two.
        group_column: holds the group; by default the one called group, patient, slide or site.

    Raises:
        DataError: it cannot be read, a line is short, or a name stands there twice with different values.
        SettingError: a column that was asked for is missing.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: must be UTF-8, byte {error.start} is not; save it as CSV UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # a name that no file can have
        raise DataError(f"{str(path)!r}: cannot be read: {error}") from error
    lines = text.splitlines()
    delimiter = max(",;\t", key=lambda d: lines[0].count(d)) if lines else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns = [column.strip() for column in next(_lines(path, reader), [])]
    if len(columns) < 2:
        raise DataError(f"{path}: needs a header line with at least two columns, the file names first; found {', '.join(columns) or 'nothing'}")
    group = _column(path, columns, group_column, GROUP_COLUMNS, "data.group_column")
    label = _column(path, columns, label_column, LABEL_COLUMNS, "data.label_column")
    if label is None and group is None and len(columns) == 2:
        label = 1
    if label is None and group is None:
        raise SettingError(f"data.label_column must name a column of {path.name}, which has {', '.join(columns[1:])}")
    return _rows(path, reader, len(columns), label, group)


def attach(source: Source, table: Table) -> Attached:
    """Give a source the labels and groups of a CSV, in place.

    A name matches an image by its whole path or by an end of it (``b/c.png`` of ``a/b/c.png``) that only one image has. An image without a row,
    or with an empty cell, has no label, and is a group of its own.

    Raises:
        DataError: no name matches, a name matches several images, or two rows match the same image.
    """
    above = f"{printable(os.path.realpath(source.root))}/" if isinstance(source, FolderSource) else ""
    names = [above + source.name(row) for row in range(len(source))]
    rows = _match(table, names)
    if not rows:
        example = next(iter(table.lines), "nothing")
        raise DataError(
            f"{table.path}: none of its {len(table.lines)} names is an image's; it has {example!r}, the images are such as {source.name(0)!r}"
        )
    if table.labels is not None:
        classes = tuple(sorted({value for value in table.labels.values() if value}, key=natural))
        place = {name: number for number, name in enumerate(classes)} | {"": -1}
        source.classes, source.labels = classes, np.full(len(names), -1, dtype=np.int64)
        for row, name in rows.items():
            source.labels[row] = place[table.labels[name]]
    if table.groups is not None:
        source.groups = np.array([table.groups.get(rows.get(row, ""), "") or f"alone: {source.name(row)}" for row in range(len(names))])
    matched = set(rows.values())
    return Attached(len(names) - len(rows), tuple(name for name in table.lines if name not in matched))


def _column(path: Path, columns: list[str], asked: str | None, usual: tuple[str, ...], setting: str) -> int | None:
    low = [column.lower() for column in columns]
    if asked is None:
        return next((low.index(word, 1) for word in usual if word in low[1:]), None)
    if asked.lower() not in low[1:]:
        raise SettingError(f"{setting}: {path.name} has no column {asked!r}; {did_you_mean(asked, columns[1:])}")
    return low.index(asked.lower(), 1)


def _rows(path: Path, reader: Any, width: int, label: int | None, group: int | None) -> Table:
    labels: dict[str, str] = {}
    groups: dict[str, str] = {}
    lines: dict[str, int] = {}
    for cells in _lines(path, reader):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != width:
            raise DataError(f"{path}: line {reader.line_num} has {len(cells)} cells, the header has {width}")
        name = cells[0].strip().replace("\\", "/").removeprefix("./")
        said = (cells[label].strip() if label is not None else "", cells[group].strip() if group is not None else "")
        if name in lines and said != (labels[name], groups[name]):
            raise DataError(f"{path}: {name} stands in line {lines[name]} and in line {reader.line_num} with different values; keep one")
        labels[name], groups[name] = said
        lines.setdefault(name, reader.line_num)
    return Table(path, labels if label is not None else None, groups if group is not None else None, lines)


def _lines(path: Path, reader: Any) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} is not CSV: {error}") from error


def _match(table: Table, names: list[str]) -> dict[int, str]:
    """The name in the CSV of each row of the source that has one."""
    whole = {name: row for row, name in enumerate(names)}
    ends = Counter(end for name in names for end in _ends(name))
    by_end = {end: row for row, name in enumerate(names) for end in _ends(name) if ends[end] == 1}
    rows: dict[int, str] = {}
    for name, line in table.lines.items():
        row = whole.get(name, by_end.get(name))
        if row is None and ends[name] > 1:
            raise DataError(f"{table.path}: line {line}: {name} is the end of {ends[name]} images' paths; write the path from the data's folder")
        if row is None:
            continue
        if row in rows:
            raise DataError(f"{table.path}: {rows[row]} (line {table.lines[rows[row]]}) and {name} (line {line}) are the same image; keep one")
        rows[row] = name
    return rows


def _ends(name: str) -> list[str]:
    """``b/c.png`` and ``c.png`` of ``a/b/c.png``."""
    parts = name.split("/")
    return ["/".join(parts[i:]) for i in range(1, len(parts))]

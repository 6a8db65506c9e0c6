"""The page of a search: each image with those most like it, in one HTML file that loads nothing else."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gnothi
from gnothi.contracts import DataError, Source
from gnothi.encoders.inputs import unit
from gnothi.files import write_text
from gnothi.report import frame
from gnothi.report.pictures import channels_note, fit, uri
from gnothi.search.similar import Found

PICTURE = 160
"""Longest side of a picture, pixels."""


def write(found: Found, path: Path | str, command: Sequence[str] = ()) -> Path:
    """Draw the page of a search.

    Args:
        found: what it found.
        path: the file to write.
        command: words that repeat it.

    Returns:
        The file.
    """
    path = Path(path).expanduser()
    answers = [
        {
            **_shown(a.query.source, a.query.row, a.query.name, a.query.label),
            "matches": [_match(found, n, a.query.label) for n in a.neighbours],
        }
        for a in found.answers
    ]
    source = found.gallery.source
    notes = [f"Pictures of those searched are not shown: {found.gallery.missing}."] if source is None else []
    if source is not None and (note := channels_note(source.channels)):
        notes.append(f"{note[0].upper()}{note[1:]}.")
    page = frame.page(
        "search.html",
        kind="neighbours",
        title=f"Nearest by {found.encoder}",
        subtitle=f"{len(answers)} image{'s' * (len(answers) > 1)} looked up among {len(found.gallery):,}, by cosine similarity",
        version=gnothi.__version__,
        answers=answers,
        notes=notes,
        command=shlex.join(command),
    )
    write_text(path, page)
    return path


def _match(found: Found, neighbour: Any, own: str | None) -> dict[str, Any]:
    gallery = found.gallery
    shown = _shown(gallery.source, int(gallery.rows[neighbour.place]), neighbour.name, neighbour.label)
    right = None if own is None or neighbour.label is None else neighbour.label == own
    return {**shown, "cosine": f"{neighbour.similarity:.3f}".replace("-", "−"), "right": right}


def _shown(source: Source | None, row: int, name: str, label: str | None) -> dict[str, Any]:
    return {"name": name, "label": label, "picture": "" if source is None else _picture(source, row)}


def _picture(source: Source, row: int) -> str:
    """A small picture, decoded no larger than it needs to be; each image of more than 8 bits by its own range. Empty where it cannot be read."""
    try:
        shrink = next(s for s in (8, 4, 2, 1) if s == 1 or min(source.shape(row)) >= s * PICTURE)
        return uri(fit(unit(source.image(row, shrink)[None])[0], PICTURE))
    except DataError:
        return ""

"""The images most like some images, by the cosine of what an encoder says of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gnothi.contracts import DataError, EncoderError, SettingError, Source, did_you_mean
from gnothi.data import DataSpec, FolderSource
from gnothi.data.decode import header
from gnothi.data.forms import Layout, agree
from gnothi.encoders import Encoder
from gnothi.encoders import load as load_encoder
from gnothi.encoders.encoder import Progress
from gnothi.evaluate.nearest import neighbours
from gnothi.search.gallery import Gallery, gallery

NAMED = 10_000
"""Names among which the nearest is looked for when one is mistyped."""


@dataclass(frozen=True)
class Neighbour:
    """An image that is like the one asked for."""

    name: str
    similarity: float
    """Cosine, -1 to 1."""
    label: str | None
    place: int
    """Among the vectors of the gallery."""


@dataclass(frozen=True)
class Query:
    """An image that is asked for: one row of a source."""

    name: str
    source: Source | None
    row: int
    label: str | None = None
    place: int | None = None
    """Among the vectors of the gallery, where it is one of them."""


@dataclass(frozen=True)
class Answer:
    """An image and those most like it, the nearest first."""

    query: Query
    neighbours: list[Neighbour]


@dataclass(frozen=True)
class Found:
    """What a search found."""

    encoder: str
    answers: list[Answer]
    gallery: Gallery = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        images = []
        for a in self.answers:
            near = [{"name": n.name, "similarity": n.similarity, "label": n.label} for n in a.neighbours]
            images.append({"image": a.query.name, "label": a.query.label, "neighbours": near})
        return {"encoder": self.encoder, "searched": len(self.gallery), "images": images}

    def lines(self) -> list[str]:
        """The same as text for a person."""
        wide = max((len(n.label or "") for a in self.answers for n in a.neighbours), default=0)
        lines = []
        for a in self.answers:
            lines.append(a.query.name + (f" ({a.query.label})" if a.query.label is not None else ""))
            lines += [f"  {n.similarity:6.3f}  {n.label or '':<{wide}}{'  ' * bool(wide)}{n.name}" for n in a.neighbours]
        return lines


def similar(
    encoder: str | Encoder,
    images: Sequence[str | Path],
    among: str | Source,
    k: int = 10,
    *,
    settings: DataSpec = DataSpec(),  # noqa: B008
    device: str | None = None,
    progress: Progress | None = None,
) -> Found:
    """Search the images most like some images.

    Args:
        encoder: its name, or itself.
        images: files; or names of images that are searched in, which are then no neighbours of their own.
        among: images by name or as a source, or a file that ``gnothi embed`` wrote with this encoder.
        k: neighbours of each; all where there are fewer.
        settings: of the data.
        device: where the encoder computes.
        progress: told how many images are embedded.

    Raises:
        SettingError: k is below 1.
        DataError: an image cannot be read, or there is none of this name.
        EncoderError: the file of features was made by another encoder, or the images do not fit this one.
    """
    if k < 1:
        raise SettingError(f"-k must be at least 1, got {k}")
    encoder = load_encoder(encoder, device) if isinstance(encoder, str) else encoder
    found = gallery(encoder, among, settings, progress)
    asked = [_query(str(image), found, encoder, settings) for image in images]
    vectors = np.stack([found.vectors[q.place] if q.place is not None else _vector(q, encoder, found) for q in asked])
    rows, cosines = neighbours(found.vectors, vectors, min(k + 1, len(found)))
    answers = []
    for q, places, values in zip(asked, rows.tolist(), cosines.tolist(), strict=True):
        near = [Neighbour(found.name(i), float(c), found.label(i), i) for i, c in zip(places, values, strict=True) if i != q.place]
        answers.append(Answer(q, near[:k]))
    return Found(encoder.name, answers, found)


def _query(image: str, found: Gallery, encoder: Encoder, settings: DataSpec) -> Query:
    """A file, or else an image of the gallery by its name."""
    path = Path(image).expanduser()
    if path.is_file():
        try:
            source = FolderSource("", [str(path)], _layout(str(path), found, encoder, settings))
        except DataError as error:
            raise DataError(f"{image}: {error}") from None
        return Query(image, source, 0)
    place = found.find(image)
    if place is None:
        known = [found.name(i) for i in range(min(len(found), NAMED))]
        near = did_you_mean(image, known + (sorted(map(str, path.parent.iterdir())) if os.sep in image and path.parent.is_dir() else []))
        raise DataError(f"{image}: no such file, nor an image of this name among those searched; {near}")
    return Query(image, found.source, int(found.rows[place]), found.label(place), place)


def _layout(path: str, found: Gallery, encoder: Encoder, settings: DataSpec) -> Layout:
    """The form that a file's image gets: that of the images it is compared with, where they are there."""
    if found.source is not None:
        return Layout(found.source.channels, str(found.source.dtype).removeprefix("torch."), settings.channels is not None)
    own = agree([header(path)[2]])
    return Layout(settings.channels or encoder.channels or own.channels, settings.dtype or own.dtype, settings.channels is not None)


def _vector(query: Query, encoder: Encoder, found: Gallery) -> np.ndarray:
    """[D] of an image in a file."""
    assert query.source is not None
    vector = encoder.embed(query.source.image(query.row)[None])[0].numpy()
    if len(vector) != found.vectors.shape[1]:
        raise EncoderError(f"{query.name} gets {len(vector)} numbers of {encoder.name}, the images searched have {found.vectors.shape[1]}")
    return vector

"""The sections that show images: views, neighbours and the map."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor

from gnothi.contracts import Pixels, Views
from gnothi.randomness import generator
from gnothi.report import maps
from gnothi.report.charts import COLOURS, percent, place, scatter
from gnothi.report.material import Sample, batch, picture, pixels_of
from gnothi.report.neighbours import lonely, nearest, typical, worst
from gnothi.report.pictures import atlas, channels_note, fit, uri
from gnothi.report.record import Record

NEIGHBOURS = 6
QUERIES = 6
PICTURE = 96
"""Longest side of a neighbour's picture, pixels."""
THUMBNAIL = 32
"""Side of a picture on the map, pixels."""


# ---- views ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crop:
    """A crop as the network gets it."""

    picture: str
    number: int
    local: bool
    box: tuple[float, float, float, float]
    """Left, top, width, height in pixels of the source."""
    note: str


@dataclass(frozen=True)
class Original:
    """A source image and its crops."""

    picture: str
    name: str
    width: int
    height: int
    crops: list[Crop]


@dataclass(frozen=True)
class Seen:
    """What the section of views shows."""

    originals: list[Original]
    lead: str


def views(found: Record, images: int = 6) -> Seen:
    """The crops of a few images as the run's first step of training would draw them."""
    source, crops = batch(found, images)
    pixels, rows = pixels_of(found), crops.index.tolist()
    originals = [picture(source, row, pixels, PICTURE) for row in rows]
    lead = (
        "Each image with its crops outlined, and beside it the crops as the network gets them: cut, resized and coloured at random. "
        "Small local crops have dashed outlines; ⇆ is a mirrored crop, ↺ a turned one."
    )
    lead += " Training asks which crops belong together." if len(crops.images) > 1 else ""
    note = channels_note(source.channels)
    return Seen(view_rows(originals, [source.name(r) for r in rows], crops, pixels), lead + (f" Here {note}." if note else ""))


def view_rows(originals: list[Tensor], names: list[str], crops: Views, pixels: Pixels, side: int = 160) -> list[Original]:
    """Originals beside their crops.

    Args:
        originals: [C, H, W] each, 0 black and 1 white.
        names: of the originals.
        crops: the views of exactly these images, normalised.
        pixels: what the views were normalised with.
        side: longest side of a picture.
    """
    rows = []
    for i, original in enumerate(originals):
        cut = []
        for v, images in enumerate(crops.images):
            shown = denormalise(images[i].float().cpu(), pixels)
            turn, flip = int(crops.turns[v, i]), bool(crops.flips[v, i])
            note = ("⇆" if flip else "") + (f" ↺{90 * turn}°" if turn else "")
            left, top, width, height = crops.boxes[v, i].tolist()
            cut.append(Crop(uri(fit(shown, side)), v + 1, v >= crops.n_global, (left, top, width, height), note))
        rows.append(Original(uri(fit(original, side)), names[i], original.shape[-1], original.shape[-2], cut))
    return rows


def denormalise(image: Tensor, pixels: Pixels) -> Tensor:
    """Undo ``Pixels.normalise``: [C, H, W] back to 0 black and 1 white."""
    mean, std = (torch.tensor(v, dtype=image.dtype)[:, None, None] for v in (pixels.mean, pixels.std))
    return image * std + mean


# ---- neighbours -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """A neighbour of a query."""

    picture: str
    name: str
    label: str
    cosine: str
    right: bool | None
    """Whether it is of the query's class; None without labels."""


@dataclass(frozen=True)
class Query:
    """An image and its neighbours."""

    picture: str
    name: str
    label: str
    matches: list[Match]


@dataclass(frozen=True)
class Neighbourhoods:
    """What the section of neighbours shows."""

    typical: list[Query]
    doubtful: list[Query]
    labelled: bool
    note: str
    agreement: str
    """Share of right neighbours over all queries; empty without labels."""


def neighbours(gallery: Sample, queries: Sample, seed: int) -> Neighbourhoods:
    """Typical queries, and those whose neighbours disagree most (without labels: those far from anything)."""
    rows, cosines = nearest(queries.features, gallery.features, NEIGHBOURS)
    order = torch.randperm(len(queries), generator=generator(seed, "report queries")).numpy()
    own, theirs = queries.classes(), gallery.classes()
    agreement = ""
    if own is None or theirs is None:
        first, second = typical(None, QUERIES, order), lonely(cosines, QUERIES)
    else:
        known = {name: i for i, name in enumerate(sorted({*own, *theirs}))}
        labels, found = np.array([known[c] for c in own]), np.array([known[c] for c in theirs])[rows]
        first, second = typical(labels, QUERIES, order), worst(labels, found, cosines, QUERIES)
        agreement = percent((found == labels[:, None]).mean(), 0)

    def query(i: int) -> Query:
        matches = [_match(gallery, int(j), float(c), own[i] if own else None, theirs) for j, c in zip(rows[i], cosines[i], strict=True)]
        return Query(queries.picture(i, PICTURE), queries.name(i), own[i] if own else "", matches)

    note = f"{len(queries):,} {queries.split} were looked up among {len(gallery):,} training images."
    return Neighbourhoods([query(int(i)) for i in first], [query(int(i)) for i in second], bool(own and theirs), note, agreement)


def _match(gallery: Sample, j: int, cosine: float, own: str | None, theirs: list[str] | None) -> Match:
    right = None if own is None or theirs is None else theirs[j] == own
    return Match(gallery.picture(j, PICTURE), gallery.name(j), theirs[j] if theirs else "", f"{cosine:.3f}".replace("-", "−"), right)


# ---- map --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """An entry of the legend."""

    number: int
    name: str
    count: int


@dataclass(frozen=True)
class Map:
    """What the map shows."""

    svg: Markup
    groups: list[Group]
    points: dict[str, Any]
    """Numbers for the hover: places, names, groups."""
    sheet: str
    columns: int
    rows: int
    note: str
    clustered: bool


def chart_of(gallery: Sample, queries: Sample, seed: int) -> Map:
    """The map of the queries; of the training images where queries are few."""
    sample = queries if len(queries) >= 300 or len(queries) >= len(gallery) else gallery
    if len(sample) > 1500:
        sample = Sample(sample.source, sample.rows[:1500], sample.features[:1500], sample.pixels, sample.split)
    if len(sample) < 3:
        raise ValueError(f"a map needs three images, there are {len(sample)}")
    if maps.flat(sample.features):
        raise ValueError("every image has the same vector, so there is nothing to map")
    placed = place(maps.layout(sample.features, seed))
    classes = sample.classes()
    names = classes or [f"cluster {c + 1}" for c in maps.clusters(sample.features, seed=seed)]
    groups, legend = grouped(names)
    note = f"{len(sample):,} {sample.split}."
    if len(sample) > 10:
        note += f" Of each image's ten nearest in the embedding, {percent(maps.kept(sample.features, placed), 0)} are among its ten nearest here."
    sheet, columns, rows = atlas([sample.thumbnail(i, THUMBNAIL) for i in range(len(sample))])
    points = {
        "x": [round(float(v), 1) for v in placed[:, 0]],
        "y": [round(float(v), 1) for v in placed[:, 1]],
        "name": [sample.name(i) for i in range(len(sample))],
        "group": groups,
        "label": names,
    }
    svg = scatter(placed, groups, f"Map of {len(sample)} images in {len(legend)} groups.")
    return Map(svg, legend, points, sheet, columns, rows, note, classes is None)


def grouped(names: list[str]) -> tuple[list[int], list[Group]]:
    """Group numbers by name, in the order of the names; beyond sixteen groups the smaller ones share the grey group -1."""
    counts = Counter(names)
    kept = sorted(counts) if len(counts) <= COLOURS else sorted(sorted(counts, key=lambda n: (-counts[n], n))[: COLOURS - 1])
    number = {name: i for i, name in enumerate(kept)}
    groups = [number.get(name, -1) for name in names]
    legend = [Group(i, name, counts[name]) for name, i in number.items()]
    rest = groups.count(-1)
    return groups, legend + ([Group(-1, f"{len(counts) - len(kept)} other classes", rest)] if rest else [])

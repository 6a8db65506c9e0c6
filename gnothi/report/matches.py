"""Two crops of an image with the patches that belong together, and those that the network takes for the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gnothi import encoders
from gnothi.auxiliary import matching
from gnothi.auxiliary.local import stride
from gnothi.contracts import Encoding, Pixels, RunError, Views, Want
from gnothi.encoders.network import NetworkEncoder
from gnothi.report.material import batch, pixels_of
from gnothi.report.pictures import fit, uri
from gnothi.report.record import Record
from gnothi.report.sections import denormalise

SIDE, GAP = 100.0, 14.0
"""Side of a crop in the drawing, and the space between two."""
PICTURE = 224
"""Longest side of a crop's picture, pixels."""


@dataclass(frozen=True)
class Cell:
    """A patch in the drawing."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    """Of the place that it shows; empty where the other crop does not show it."""


@dataclass(frozen=True)
class Line:
    """From a patch of the left crop to the most similar one of the right crop."""

    x1: float
    y1: float
    x2: float
    y2: float
    near: bool
    """It is the same place."""


@dataclass(frozen=True)
class Pair:
    """Two crops of an image, side by side."""

    name: str
    left: str
    right: str
    cells: list[Cell]
    """Of both crops: patches of one colour belong together."""
    lines: list[Line]
    note: str


@dataclass(frozen=True)
class Matched:
    """What the section shows."""

    pairs: list[Pair]
    lead: str
    width: float = 2 * SIDE + GAP
    height: float = SIDE
    second: float = SIDE + GAP
    """Where the right crop begins."""


def wanted(found: Record) -> bool:
    """Whether the run taught patches."""
    weight: float = found.settings.get("auxiliary", {}).get("local", {}).get("weight", 0)
    return weight > 0


def matches(found: Record, images: int = 3) -> Matched:
    """The first two crops of a few images as training draws them, and what the run's encoder says of their patches."""
    encoder = encoders.load(str(found.folder))
    if not isinstance(encoder, NetworkEncoder):
        raise RunError(f"{found.folder} has no network whose patches could be shown")
    source, crops = batch(found, images)
    with torch.inference_mode():
        said = [encoder.backbone(crops.images[v].to(encoder.device), Want(patches=True)) for v in range(2)]
    offset = float(found.settings["auxiliary"]["local"].get("token_offset", 0.0))
    lead = (
        "The first two crops of an image. Above, a patch of the left crop and the nearest one of the right crop have one colour, by the boxes "
        "that were cut; dark patches have no partner. Below, a line leads from each patch with a partner to the patch that the network finds "
        "most similar: solid where that is the same place, dashed where it is another."
    )
    return Matched(drawn(crops, said, [source.name(int(r)) for r in crops.index], pixels_of(found), offset, stride(encoder.backbone)), lead)


def drawn(crops: Views, said: list[Encoding], names: list[str], pixels: Pixels, offset: float = 0.0, step: int | None = None) -> list[Pair]:
    """Draw the first two crops of every image.

    Args:
        crops: views, normalised.
        said: what the network says of these two crops.
        names: of the images.
        pixels: what the views were normalised with.
        offset: where tokens look from the centres of their cells, in pixels of the crop.
        step: from a token to the next, in pixels of the crop; None where tokens fill it.
    """
    frames = []
    for v in range(2):
        height, width = crops.images[v].shape[-2:]
        room, cell = matching.room_of(height, width, step), step or width / said[v].grid[1]
        frames.append(matching.frame(crops.boxes[v], said[v].grid, crops.flips[v], crops.turns[v], offset / cell, room))
    at, to = frames
    index, distance = matching.nearest(at, to)
    limit = matching.reach(at, to)[:, None]
    kept = distance < limit
    tokens = [e.patches.float().cpu() for e in said if e.patches is not None]
    like = matching.similar(*tokens)
    near = matching.apart(at, to, like) < limit
    return [_pair(names[i], [crops.images[v][i] for v in range(2)], said, pixels, index[i], kept[i], like[i], near[i]) for i in range(len(names))]


def _pair(name: str, images: list[Tensor], said: list[Encoding], pixels: Pixels, index: Tensor, kept: Tensor, like: Tensor, near: Tensor) -> Pair:
    grid, other = said[0].grid, said[1].grid
    taken = set(index[kept].tolist())
    cells = [_cell(n, grid, 0.0, _colour(int(index[n]), other) if kept[n] else "") for n in range(len(index))]
    cells += [_cell(m, other, SIDE + GAP, _colour(m, other) if m in taken else "") for m in range(other[0] * other[1])]
    lines = [_line(n, grid, int(like[n]), other, bool(near[n])) for n in kept.nonzero()[:, 0].tolist()]
    right, count = sum(line.near for line in lines), len(lines)
    note = f"{count} of {len(index)} patches have a partner; the most similar patch is the same place for {right} of them"
    shown = [uri(fit(denormalise(image.float().cpu(), pixels), PICTURE)) for image in images]
    return Pair(name, shown[0], shown[1], cells, lines, note)


def _cell(number: int, grid: tuple[int, int], left: float, colour: str) -> Cell:
    row, column = divmod(number, grid[1])
    width, height = SIDE / grid[1], SIDE / grid[0]
    return Cell(round(left + column * width, 2), round(row * height, 2), round(width, 2), round(height, 2), colour)


def _colour(number: int, grid: tuple[int, int]) -> str:
    """Hue by column, lightness by row."""
    row, column = divmod(number, grid[1])
    return f"hsl({300 * column / max(grid[1] - 1, 1):.0f} 85% {30 + 45 * row / max(grid[0] - 1, 1):.0f}%)"


def _line(start: int, grid: tuple[int, int], end: int, other: tuple[int, int], near: bool) -> Line:
    a, b = _cell(start, grid, 0.0, ""), _cell(end, other, SIDE + GAP, "")
    x1, y1, x2, y2 = (round(v, 2) for c in (a, b) for v in (c.x + c.width / 2, c.y + c.height / 2))
    return Line(x1, y1, x2, y2, near)

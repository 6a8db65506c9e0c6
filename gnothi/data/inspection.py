"""Looking at images before training: range and statistics of the channels, sizes, classes, broken files, duplicates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from gnothi.contracts import DataError, Pixels, Source
from gnothi.data.duplicates import digest, exact_groups, near_groups, thumbnail
from gnothi.data.folder import FolderSource
from gnothi.data.shards import ShardSource
from gnothi.data.tiles import TileSource
from gnothi.randomness import generator

STD_FLOOR = 1e-3
"""A channel's deviation is taken to be at least this (of a range of 1), so that a constant channel becomes 0 and not noise or infinity."""
Progress = Callable[[int, int], None]
"""Called with the number done and the number to do."""


def pixels(source: Source, sample: int = 2000, seed: int = 0) -> Pixels:
    """How the numbers of the images become a network's input.

    The range of uint8 is 0 to 255. That of uint16 and floats is what the sample holds; a constant set gets a range 1 wide that starts at its value.
    Mean and deviation by channel are of all pixels of the sample, after mapping that range to [0, 1], summed in float64; the deviation is at least
    ``STD_FLOOR``. Images that cannot be read are left out.

    Args:
        source: the images.
        sample: at most so many images, drawn without replacement.
        seed: of the draw.

    Raises:
        DataError: none of the sampled images can be read.
    """
    rows = torch.randperm(len(source), generator=generator(seed, "pixels"))[:sample].sort().values
    moments = Moments(source.channels)
    for image in readable(source, rows.tolist()):
        moments.add(image)
    return moments.pixels(source)


class Moments:
    """Running minimum, maximum, sum and sum of squares by channel, in float64."""

    def __init__(self, channels: int) -> None:
        self.n, self.shift = 0, np.zeros(channels)
        self.sum, self.squares = np.zeros(channels), np.zeros(channels)
        self.low, self.high = np.full(channels, np.inf), np.full(channels, -np.inf)

    def add(self, image: np.ndarray) -> None:
        """Count in an image [C, H, W]."""
        flat = image.reshape(len(image), -1).astype(np.float64)
        if self.n == 0:
            # Sums about the first image's mean: squares of large 16-bit or float values would cancel.
            self.shift = flat.mean(1)
        self.n += flat.shape[1]
        self.low, self.high = np.minimum(self.low, flat.min(1)), np.maximum(self.high, flat.max(1))
        flat -= self.shift[:, None]
        self.sum += flat.sum(1)
        self.squares += np.einsum("cp,cp->c", flat, flat)

    def pixels(self, source: Source) -> Pixels:
        """Range and statistics of what was counted in."""
        if self.n == 0:
            raise DataError(f"none of the images looked at can be read, the first is {source.name(0)}; gnothi data lists them")
        low, high = (0.0, 255.0) if source.dtype == torch.uint8 else (float(self.low.min()), float(self.high.max()))
        width = high - low if high > low else 1.0
        mean = self.sum / self.n
        std = np.sqrt(np.maximum(self.squares / self.n - mean**2, 0)) / width
        unit = (mean + self.shift - low) / width
        return Pixels(low, low + width, tuple(unit.tolist()), tuple(np.maximum(std, STD_FLOOR).tolist()))


def readable(source: Source, rows: list[int]) -> Iterator[np.ndarray]:
    """The images of some rows, in order, read by several threads; those that cannot be read are left out."""

    def read(row: int) -> np.ndarray | None:
        try:
            return source.image(row).numpy()
        except DataError:
            return None

    with ThreadPoolExecutor(8) as pool:
        for start in range(0, len(rows), 256):
            yield from (image for image in pool.map(read, rows[start : start + 256]) if image is not None)


# ---- the whole look ------------------------------------------------------------------------------
@dataclass(frozen=True)
class Inspection:
    """What was seen of a source, as plain values."""

    n: int
    channels: int
    dtype: str
    pixels: dict[str, Any]
    """Range, mean and deviation that training uses (``pixels``)."""
    minimum: list[float]
    """By channel, of all images."""
    maximum: list[float]
    sizes: dict[str, Any]
    """``min``, ``median`` and ``max`` as [height, width], each side by itself; ``distinct`` counts the pairs."""
    stored: dict[str, int]
    """How many files are stored in which form (palette, cmyk, grey, ...); empty where the images are no files."""
    broken: list[dict[str, str]]
    """``name`` and ``message`` of each image that cannot be read."""
    exact: list[list[str]]
    """Names of images with the same pixels, a list for each picture."""
    near: list[list[str]]
    """Names of images that nearly agree and are not listed in ``exact`` as a whole."""
    classes: dict[str, int] | None
    unlabelled: int
    groups: int | None
    notes: list[str] = field(default_factory=list)
    test: Inspection | None = None
    shared: dict[str, list[list[str]]] | None = None
    """``exact`` and ``near``: lists with names of both training and test images, which start with ``train: `` and ``test: ``."""

    def to_dict(self) -> dict[str, Any]:
        """The same as nested dictionaries and lists, for JSON."""
        return asdict(self)

    def lines(self, test: str | None = None) -> list[str]:
        """The same as text for a person; ``test`` is what the test images are called, such as flowers@val."""
        head = "test" if test is None else f"test ({test})"
        return [*_summary(self), *([] if self.test is None else ["", head, *_summary(self.test)]), *_shared_lines(self.shared)]


class _Look(NamedTuple):
    row: int
    size: tuple[int, int]
    stored: str | None
    digest: bytes
    thumbnail: np.ndarray
    low: np.ndarray
    high: np.ndarray


def inspect(source: Source, test: Source | None = None, progress: Progress | None = None) -> Inspection:
    """Read every image once, and say what a person should know before training.

    Args:
        source: the images to train on.
        test: those to test on; images in both are found too.
        progress: called now and then with the number of images done and of all.

    Raises:
        DataError: no image can be read.
    """
    every = len(source) + (len(test) if test is not None else 0)
    own, broken, scale = _look(source, 0, every, progress)
    if test is None:
        return _inspection(source, own, broken, scale)
    others, test_broken, test_scale = _look(test, len(source), every, progress, scale)
    names = [f"train: {source.name(look.row)}" for look in own] + [f"test: {test.name(look.row)}" for look in others]
    exact, near = _duplicates(own + others)
    shared = {"exact": _both(exact, names, len(own)), "near": _both(near, names, len(own))}
    return _inspection(source, own, broken, scale, _inspection(test, others, test_broken, test_scale), shared)


def _look(
    source: Source, done: int, every: int, progress: Progress | None, scale: Pixels | None = None
) -> tuple[list[_Look], list[dict[str, str]], Pixels]:
    """What is seen of each image that can be read, the broken ones, and the scale; thumbnails are in the scale given, if any."""
    own = pixels(source)
    unit, looks, broken = scale or own, [], []

    def look(row: int) -> _Look | DataError:
        try:
            stored = source.form(row)[2].stored if isinstance(source, FolderSource | ShardSource | TileSource) else None
            image = source.image(row).numpy()
        except DataError as error:
            return error
        small = (thumbnail(image) - unit.low) / (unit.high - unit.low)
        return _Look(row, image.shape[1:], stored, digest(image), small, image.min((1, 2)), image.max((1, 2)))

    with ThreadPoolExecutor(8) as pool:
        for start in range(0, len(source), 256):
            part = range(start, min(start + 256, len(source)))
            for row, seen in zip(part, pool.map(look, part), strict=True):
                if isinstance(seen, _Look):
                    looks.append(seen)
                else:
                    broken.append({"name": source.name(row), "message": str(seen).removeprefix(f"{source.name(row)}: ")})
            if progress is not None:
                progress(done + part.stop, every)
    return looks, broken, own


def _inspection(
    source: Source,
    looks: list[_Look],
    broken: list[dict[str, str]],
    scale: Pixels,
    test: Inspection | None = None,
    shared: dict[str, list[list[str]]] | None = None,
) -> Inspection:
    sizes = np.array([look.size for look in looks])
    exact, near = _duplicates(looks)
    names = [source.name(look.row) for look in looks]
    labels = source.labels if source.labels is not None else np.full(len(source), -1)
    counts = np.bincount(labels[labels >= 0], minlength=len(source.classes or ()))
    return Inspection(
        n=len(source),
        channels=source.channels,
        dtype=str(source.dtype).removeprefix("torch."),
        pixels={key: list(value) if isinstance(value, tuple) else value for key, value in asdict(scale).items()},
        minimum=np.min([look.low for look in looks], axis=0).astype(float).tolist(),
        maximum=np.max([look.high for look in looks], axis=0).astype(float).tolist(),
        sizes={
            "min": sizes.min(0).tolist(),
            "median": np.median(sizes, axis=0).tolist(),
            "max": sizes.max(0).tolist(),
            "distinct": len(np.unique(sizes, axis=0)),
        },
        stored=dict(Counter(look.stored for look in looks if look.stored is not None).most_common()),
        broken=broken,
        exact=[[names[i] for i in rows] for rows in exact],
        near=[[names[i] for i in rows] for rows in near],
        classes=None if source.labels is None else dict(zip(source.classes or (), counts.tolist(), strict=True)),
        unlabelled=int((labels < 0).sum()),
        groups=None if source.groups is None else len(np.unique(source.groups)),
        notes=list(source.notes),
        test=test,
        shared=shared,
    )


def _duplicates(looks: list[_Look]) -> tuple[list[list[int]], list[list[int]]]:
    """Exact and near groups of places in ``looks``; a near one adds something to the exact ones."""
    digests = [look.digest for look in looks]
    near = near_groups(np.stack([look.thumbnail for look in looks]))
    return exact_groups(digests), [rows for rows in near if len({digests[i] for i in rows}) > 1]


def _both(groups: list[list[int]], names: list[str], border: int) -> list[list[str]]:
    return [[names[i] for i in rows] for rows in groups if rows[0] < border <= rows[-1]]


# ---- as text -------------------------------------------------------------------------------------
SHOWN = 5
CONVERTED = {
    "palette": "becomes RGB",
    "bilevel": "becomes grey, 0 and 255",
    "cmyk": "becomes RGB",
    "ycbcr": "becomes RGB",
    "rgb+alpha": "laid over white",
    "grey+alpha": "laid over white",
}


def _summary(seen: Inspection) -> list[str]:
    lines = [f"{seen.n:,} images, {seen.channels} channel{'s' * (seen.channels > 1)}, {seen.dtype}"]
    low, middle, high = (f"{seen.sizes[k][0]:g} x {seen.sizes[k][1]:g}" for k in ("min", "median", "max"))
    lines.append(f"sizes (height x width): all {low}" if seen.sizes["distinct"] == 1 else _sizes(low, middle, high, seen.sizes["distinct"]))
    if seen.stored:
        lines.append("stored as: " + ", ".join(f"{count:,} {form}{_becomes(form, seen.channels)}" for form, count in seen.stored.items()))
    scale = seen.pixels
    lines += [f"range {scale['low']:g} to {scale['high']:g}; mean and deviation are of that range", "channel  minimum  maximum    mean  deviation"]
    for c, (least, most) in enumerate(zip(seen.minimum, seen.maximum, strict=True)):
        lines.append(f"{c:7d}  {least:7g}  {most:7g}  {scale['mean'][c]:6.4f}  {scale['std'][c]:9.4f}")
    if seen.classes is None:
        lines.append("no classes: neither folders nor labels name any; --set data.labels=FILE takes them from a CSV")
    else:
        shown = sorted(seen.classes.items(), key=lambda item: -item[1])
        listed = ", ".join(f"{name} {count:,}" for name, count in (shown if len(shown) <= 20 else [*shown[:10], *shown[-3:]]))
        lines.append(f"{len(shown)} classes: {listed}" + (" (the largest and the smallest)" if len(shown) > 20 else ""))
        lines += [f"{seen.unlabelled:,} images without a label"] if seen.unlabelled else []
    lines += [f"{seen.groups:,} groups"] if seen.groups is not None else []
    lines.append(f"broken: {len(seen.broken):,}" + (f" ({len(seen.broken) / seen.n:.1%})" if seen.broken else ""))
    lines += [f"  {one['name']}: {one['message']}" for one in seen.broken]
    lines += group_lines("exact duplicates", seen.exact) + group_lines("near duplicates", seen.near)
    return lines + [f"note: {note}" for note in seen.notes]


def _sizes(low: str, middle: str, high: str, distinct: int) -> str:
    return f"sizes (height x width): {low} to {high}, median {middle}; {distinct:,} distinct"


def _becomes(form: str, channels: int) -> str:
    if form == "grey" and channels == 3:
        return " (repeated to RGB)"
    kept = (form, channels) in (("rgb+alpha", 4), ("grey+alpha", 2))
    return f" ({CONVERTED[form]})" if form in CONVERTED and not kept else ""


def group_lines(what: str, groups: list[list[str]]) -> list[str]:
    """How many images are more than one of their group, and the first groups by name."""
    surplus = sum(len(group) - 1 for group in groups)
    lines = [f"{what}: {surplus:,}" + (f", of {len(groups):,} picture{'s' * (len(groups) > 1)}" if groups else "")]
    lines += ["  " + " = ".join(group[:4]) + (f" and {len(group) - 4:,} more" if len(group) > 4 else "") for group in groups[:SHOWN]]
    return lines + (
        [f"  and {len(groups) - SHOWN:,} picture{'s' * (len(groups) > SHOWN + 1)} more (--json lists all)"] if len(groups) > SHOWN else []
    )


def _shared_lines(shared: dict[str, list[list[str]]] | None) -> list[str]:
    if shared is None:
        return []
    return ["", *group_lines("exactly in both training and test", shared["exact"]), *group_lines("nearly in both", shared["near"])]

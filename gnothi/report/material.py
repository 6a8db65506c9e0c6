"""Images, views and vectors for the page: a run's data and encoder, opened once and sampled by the run's seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gnothi import data
from gnothi.contracts import DataError, Pixels, Source, Views
from gnothi.randomness import generator
from gnothi.report.pictures import fit, square, uri
from gnothi.report.record import Record

GALLERY = 4000
"""Training images at most among which neighbours are sought."""
QUERIES = 1500
"""Images at most that are looked up, and drawn on the map."""


@dataclass(frozen=True)
class Sample:
    """Some images of a source and their vectors."""

    source: Source
    rows: np.ndarray
    """[N] row numbers in the source."""
    features: np.ndarray
    """[N, D]."""
    pixels: Pixels
    split: str
    """What the images are, in words."""

    def __len__(self) -> int:
        return len(self.rows)

    def classes(self) -> list[str] | None:
        """A class name a row; None without labels."""
        if self.source.labels is None:
            return None
        names, labels = self.source.classes, self.source.labels[self.rows]
        return [names[i] if names else f"class {i}" for i in labels]

    def name(self, position: int) -> str:
        """What a person calls an image of the sample."""
        return self.source.name(int(self.rows[position]))

    def picture(self, position: int, side: int) -> str:
        """An image as a data URI, its longer side at most ``side``."""
        return uri(fit(picture(self.source, int(self.rows[position]), self.pixels, side), side))

    def thumbnail(self, position: int, side: int) -> Tensor:
        """The central square of an image, [C, side, side], 0 black and 1 white."""
        return square(picture(self.source, int(self.rows[position]), self.pixels, side), side)


def picture(source: Source, row: int, pixels: Pixels, side: int) -> Tensor:
    """An image [C, H, W], 0 black and 1 white, decoded no larger than a picture of ``side`` needs where the source can."""
    shrink = next(s for s in (8, 4, 2, 1) if s == 1 or min(source.shape(row)) >= s * side)
    return pixels.unit(source.image(row, shrink))


def pixels_of(record: Record) -> Pixels:
    """The pixel range and statistics that the run normalised with."""
    found = record.derived["pixels"]
    return Pixels(found["low"], found["high"], tuple(found["mean"]), tuple(found["std"]))


def open_data(record: Record, split: str) -> Source:
    """The run's data, one split."""
    named = dict(record.settings["data"])
    return data.open(named.pop("name"), settings=data.DataSpec(**named), split=split)


def samples(record: Record) -> tuple[Sample, Sample]:
    """Training images to search in, and images to look up, with the vectors that the run's encoder gives them.

    Those to look up come from the test split; where there is none, they are training images that are left out of the search.
    Where there are labels, rows without one are left out.
    """
    from gnothi import encoders

    encoder, pixels, seed = encoders.load(str(record.folder)), pixels_of(record), int(record.settings.get("seed", 0))
    train = open_data(record, "train")
    order = shuffled(train, seed, "gallery")
    try:
        test = open_data(record, "test")
    except DataError:
        count = min(QUERIES, len(order) // 4)
        parts = (train, order[count:][:GALLERY], "training images"), (train, order[:count], "training images (there is no test split)")
    else:
        parts = (train, order[:GALLERY], "training images"), (test, shuffled(test, seed, "queries")[:QUERIES], "test images")
    gallery, queries = (Sample(s, rows, encoder.embed_source(s, rows=rows), pixels, words) for s, rows, words in parts)
    return gallery, queries


def shuffled(source: Source, seed: int, purpose: str) -> np.ndarray:
    """All rows of a source in random order, [N]; only those with a label where there are labels."""
    order = torch.randperm(len(source), generator=generator(seed, "report", len(purpose), *purpose.encode())).numpy()
    return order if source.labels is None else order[source.labels[order] >= 0]


def batch(record: Record, images: int) -> tuple[Source, Views]:
    """The first images of the first step's batch, with their crops."""
    raise DataError("views have no batches yet")

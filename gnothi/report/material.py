"""Images, views and vectors for the page: a run's data and encoder, opened once and sampled by the run's seed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gnothi import data, encoders
from gnothi.contracts import Pixels, RunError, Source, Views
from gnothi.data.open import divide
from gnothi.randomness import generator
from gnothi.recipes.spec import load
from gnothi.report.neighbours import typical
from gnothi.report.pictures import fit, square, uri
from gnothi.report.record import Record
from gnothi.views.batches import Batches, ViewsSpec

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


def training_data(record: Record) -> Source:
    """The images the run learnt from, with those it held out for k-NN along the way."""
    spec = load(record.settings)
    return data.open(spec.data.name, settings=spec.data)


def unseen_data(record: Record) -> tuple[Source, str] | None:
    """The test split of the run's data, or its val split, and what to call its images; None where there is neither."""
    spec = load(record.settings)
    name, trained = divide(spec.data.name)
    split = next((s for s in ("test", "val") if s in data.splits(name, spec.data) and s != trained), None)
    return None if split is None else (data.open(name, settings=spec.data, split=split), f"{split} images")


def samples(record: Record) -> tuple[Sample, Sample]:
    """Training images to search in, and images to look up, with the vectors that the run's encoder gives them.

    Those to look up come from the test (or val) split; where there is none, they are training images that are left out of the search.
    Where there are labels, rows without one are left out. So are images that cannot be read.

    Raises:
        LookupError: too few images have a label.
    """
    encoder, pixels, seed = encoders.load(str(record.folder)), pixels_of(record), int(record.settings.get("seed", 0))
    train, unseen = training_data(record), unseen_data(record)
    order = shuffled(train, seed, "report gallery")
    if unseen is None:
        count = min(QUERIES, len(order) // 4)
        parts = [(train, order[count:][:GALLERY], "training images"), (train, order[:count], "training images (there is no test split)")]
    else:
        parts = [(train, order[:GALLERY], "training images"), (unseen[0], shuffled(unseen[0], seed, "report queries")[:QUERIES], unseen[1])]
    parts = [(s, rows, _counted(s, words)) for s, rows, words in parts]
    if few := [words for _, rows, words in parts if not len(rows)]:
        raise LookupError(f"there are too few {few[0]} to look anything up")
    gallery, queries = (_readable(Sample(s, rows, encoder.embed_source(s, rows=rows), pixels, words)) for s, rows, words in parts)
    return gallery, queries


def _counted(source: Source, words: str) -> str:
    """What the images are, and that only some of them were taken."""
    return words if source.labels is None or bool((source.labels >= 0).all()) else words.replace("images", "images with a label", 1)


def _readable(sample: Sample) -> Sample:
    """Without the images that cannot be read, whose vectors are NaN."""
    whole = np.isfinite(sample.features).all(1)
    return replace(sample, rows=sample.rows[whole], features=sample.features[whole])


def shuffled(source: Source, seed: int, purpose: str) -> np.ndarray:
    """All rows of a source in random order, [N]; only those with a label where there are labels."""
    order = torch.randperm(len(source), generator=generator(seed, purpose)).numpy()
    return order if source.labels is None else order[source.labels[order] >= 0]


def batch(record: Record, images: int) -> tuple[Source, Views]:
    """A few training images, of different classes where there are labels, and their crops as training draws them.

    Returns:
        A source of these images only, and views whose ``index`` counts in it.

    Raises:
        RunError: the run does not say its crops.
    """
    if "views" not in record.derived:
        raise RunError(f"{record.folder}/spec.json does not say the run's crops (derived.views)")
    train, seed = training_data(record), int(record.settings.get("seed", 0))
    few = data.Subset(train, typical(train.labels, images, shuffled(train, seed, "report views")))
    views = ViewsSpec(**record.derived["views"])
    return few, Batches(few, views, batch=len(few), seed=seed, pixels=pixels_of(record), device="cpu", total=1, broken_fraction=1.0)(0)

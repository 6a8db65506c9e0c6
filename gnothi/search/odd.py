"""What is odd in a data set by an encoder: images that it can hardly tell apart, and images that are like nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gnothi.contracts import DataError, SettingError, Source
from gnothi.data.inspection import SHOWN, group_lines
from gnothi.encoders import Encoder
from gnothi.encoders import load as load_encoder
from gnothi.encoders.encoder import Progress
from gnothi.evaluate.nearest import MEMORY, neighbours
from gnothi.search.gallery import Gallery, gallery

NEIGHBOURS = 10
"""Nearest images of each that are looked at."""
CLOSER = 0.1
"""A pair is near where its cosine distance is at most this part of the median distance of an image to its nearest."""
ROUNDING = 1e-6
"""And distances below this are none: what float32 leaves of equal vectors."""
FENCE = 1.5
"""An outlier's mean similarity lies so many interquartile ranges below the lower quartile (Tukey's fence)."""


@dataclass(frozen=True)
class Odd:
    """What was found, as plain values."""

    encoder: str
    near_cosine: float
    """Pairs of at least this cosine are near duplicates."""
    near: list[list[str]]
    """Names of images that are near duplicates, directly or through others."""
    fence: float
    """Images of a mean similarity below this are outliers."""
    outliers: list[tuple[str, float]]
    """Name and mean cosine to the nearest, the loneliest first."""
    neighbours: int
    shared: list[list[str]] | None = None
    """Pairs of a training and a test image that are near duplicates, their names after ``train: `` and ``test: ``."""

    def to_dict(self) -> dict[str, Any]:
        """The same as dictionaries and lists, for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The same as text for a person."""
        lines = ["", *group_lines(f"near duplicates by {self.encoder} (cosine of {self.near_cosine:.4g} or more)", self.near)]
        about = f"mean cosine to the {self.neighbours} nearest below {self.fence:.3f}"
        lines.append(f"outliers by {self.encoder} ({about}): {len(self.outliers):,}")
        lines += [f"  {value:6.3f}  {name}" for name, value in self.outliers[:SHOWN]]
        lines += [f"  and {len(self.outliers) - SHOWN:,} more (--json lists all)"] if len(self.outliers) > SHOWN else []
        return lines + ([] if self.shared is None else group_lines(f"nearly in both training and test by {self.encoder}", self.shared))


def odd(
    encoder: str | Encoder,
    source: Source,
    test: Source | None = None,
    *,
    near: float | None = None,
    k: int = NEIGHBOURS,
    device: str | None = None,
    progress: Progress | None = None,
    memory: int = MEMORY,
) -> Odd:
    """Look for near duplicates and outliers by what an encoder says of the images.

    Every image is compared with all others, exactly, in blocks of bounded memory; only its k nearest are kept. Groups of near duplicates are joined
    through these, so a group of up to k + 1 images is whole, and a larger one may fall into parts.

    Args:
        encoder: its name, or itself.
        source: the images.
        test: images to test on; those that are near duplicates of one of ``source`` are named too.
        near: the cosine from which on a pair is near. None: by rule, so that its distance is at most a tenth of the median distance of an image to
            its nearest.
        k: nearest images whose mean similarity says how lonely an image is.
        device: where the encoder computes.
        progress: told how many images are embedded.
        memory: bound in bytes on what the search takes, besides k numbers an image.

    Raises:
        DataError: fewer than three images can be read.
        SettingError: ``near`` is no cosine, or k is below 1.
    """
    if near is not None and not -1 <= near <= 1:
        raise SettingError(f"--near must be a cosine from -1 to 1, got {near}; 0.99 is strict")
    if k < 1:
        raise SettingError(f"k must be at least 1, got {k}; {NEIGHBOURS} is usual")
    encoder = load_encoder(encoder, device) if isinstance(encoder, str) else encoder
    found = gallery(encoder, source, progress=progress)
    if len(found) < 3:
        raise DataError(f"near duplicates and outliers need at least three images that can be read, got {len(found)}")
    rows, cosines = neighbours(found.vectors, found.vectors, min(k, len(found) - 1), leave_one_out=True, memory=memory)
    threshold = near if near is not None else near_by_rule(cosines[:, 0])
    mean = cosines.mean(1)
    low, high = np.quantile(mean, [0.25, 0.75])
    fence = float(low - FENCE * (high - low))
    lonely = [int(i) for i in np.argsort(mean, kind="stable") if mean[i] < fence]
    return Odd(
        encoder.name,
        threshold,
        [[found.name(i) for i in group] for group in groups(rows, cosines, threshold)],
        fence,
        [(found.name(i), float(mean[i])) for i in lonely],
        rows.shape[1],
        None if test is None else _shared(found, gallery(encoder, test, progress=progress), threshold, memory),
    )


def near_by_rule(nearest: np.ndarray) -> float:
    """The cosine from which on a pair is near, from the cosine of each image to its nearest, [N]."""
    return float(1 - max(CLOSER * (1 - np.median(nearest)), ROUNDING))


def groups(rows: np.ndarray, cosines: np.ndarray, threshold: float) -> list[list[int]]:
    """Images joined by neighbours of at least a cosine; by their first row.

    Args:
        rows: [N, k] neighbours of each.
        cosines: [N, k].
        threshold: of a pair that is joined.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    own, column = np.nonzero(cosines >= threshold)
    joined = coo_matrix((np.ones(len(own), dtype=bool), (own, rows[own, column])), shape=(len(rows), len(rows)))
    number = connected_components(joined, directed=False)[1]
    order = np.argsort(number, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(number[order])) + 1)
    return sorted(part.tolist() for part in parts if len(part) > 1)


def _shared(train: Gallery, test: Gallery, threshold: float, memory: int) -> list[list[str]]:
    """Each test image that is a near duplicate of a training image, behind the nearest of these."""
    rows, cosines = neighbours(train.vectors, test.vectors, 1, memory=memory)
    name: Callable[[int], str] = test.name
    return [[f"train: {train.name(int(rows[i, 0]))}", f"test: {name(int(i))}"] for i in np.flatnonzero(cosines[:, 0] >= threshold)]

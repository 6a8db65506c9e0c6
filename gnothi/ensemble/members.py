"""The features of several members: checked, cut into blocks, brought to unit length, and their moments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gnothi.contracts import DataError
from gnothi.randomness import generator

BLOCK = 4096
"""Rows that are held at a time."""
RANK = 1e-8
"""Part of the largest variance below which products of rows with rows do not say the direction of a component."""


@dataclass(frozen=True)
class Chosen:
    """Some rows of a matrix, which stays on the disk where it lies there."""

    matrix: np.ndarray
    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """[n, D]."""
        return len(self.rows), self.matrix.shape[1]

    @property
    def ndim(self) -> int:
        """2."""
        return 2

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray:
        chosen: np.ndarray = self.matrix[self.rows[which]]
        return chosen


Matrix = np.ndarray | Tensor | Chosen
Features = Sequence[Matrix]
"""A matrix [N, D_j] a member, of the same images in the same order; also memory-mapped."""


def readable(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """[N] bool: the images that every member could read."""
    read: np.ndarray = np.logical_and.reduce([~np.isnan(x[:, 0]) for x in vectors])
    return read


def together(vectors: Sequence[np.ndarray]) -> tuple[Features, np.ndarray]:
    """The vectors of the images that every member could read, and the row numbers [n] of these."""
    whole = readable(vectors)
    rows = np.flatnonzero(whole)
    return (vectors if whole.all() else [Chosen(x, rows) for x in vectors]), rows


def rows_of(x: Matrix, rows: slice | Tensor) -> Tensor:
    """Some rows on the CPU: float64 where the features are, float32 otherwise."""
    part = x[rows] if isinstance(x, Tensor) else torch.from_numpy(np.array(x[rows if isinstance(rows, slice) else rows.numpy()]))
    return part.detach().cpu().to(torch.float64 if part.dtype == torch.float64 else torch.float32)


def unit(x: Matrix, rows: slice | Tensor) -> Tensor:
    """Some rows at unit length; a row of zeros stays one."""
    return F.normalize(rows_of(x, rows), dim=1)


def some_rows(n: int, most: int, seed: int, purpose: str) -> Tensor:
    """Numbers of rows that are drawn, in order: all where there are no more."""
    return torch.randperm(n, generator=generator(seed, purpose))[:most].sort().values


def blocks(n: int, size: int = BLOCK) -> Iterator[slice]:
    """All rows, so many at a time."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def check(features: Features, names: Sequence[str]) -> None:
    """Refuse what cannot be members of one ensemble.

    Raises:
        DataError: there is none, they are not of the same images, a number is not finite, or a member says the same of every image.
    """
    if not features:
        raise DataError("an ensemble needs at least one member, got none")
    for name, x in zip(names, features, strict=True):
        if x.ndim != 2 or len(x) < 2:
            raise DataError(f"features of {name} must be [N, D] with at least two rows, got the shape {tuple(x.shape)}")
        if len(x) != len(features[0]):
            raise DataError(f"members must have seen the same images; {names[0]} has {len(features[0])} rows, {name} has {len(x)}")
        _sound(name, x)


def _sound(name: str, x: Matrix) -> None:
    first, differs = unit(x, slice(0, 1)), False
    for part in blocks(len(x)):
        block = unit(x, part)
        finite = torch.isfinite(block).all(dim=1)
        if not finite.all():
            raise DataError(f"features must be finite numbers, row {int((~finite).nonzero()[0]) + part.start} of {name} is not")
        differs = differs or not torch.allclose(block, first.expand_as(block), rtol=0, atol=1e-6)
    if not differs:
        raise DataError(f"{name} says the same of every image, up to scale; leave it out of the ensemble")


def moments(features: Features) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the concatenation of the members at unit length, streamed.

    Args:
        features: [N, D_j] a member.

    Returns:
        Mean [D] and covariance [D, D] over N, both float64.
    """
    n, width = len(features[0]), sum(x.shape[1] for x in features)
    shift = torch.cat([unit(x, slice(0, BLOCK)).double().mean(0) for x in features])  # near the mean: nothing is lost when its square is taken away
    total, products = torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
    for part in blocks(n):
        block = torch.cat([unit(x, part).double() for x in features], dim=1) - shift
        total += block.sum(0)
        products.addmm_(block.T, block)
    mean = total / n
    return shift + mean, products / n - torch.outer(mean, mean)


def eigen(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [D], largest first and not below 0, and eigenvectors [D, D] by column, whose largest entry is positive."""
    values, vectors = torch.linalg.eigh(covariance)
    return values.flip(0).clamp(min=0), _upright(vectors.flip(1))


def _upright(vectors: Tensor) -> Tensor:
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0)


def principal(features: Features, width: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """The first principal components of the concatenation at unit length: by rows with rows where these are fewer than the numbers of a row.

    Args:
        features: [N, D_j] a member.
        width: how many components, below N.

    Returns:
        Mean [D], variances [width], components [D, width] by column, all float64, and the mean variance of the D numbers.
    """
    n, total = len(features[0]), sum(x.shape[1] for x in features)
    if n < total:
        x = torch.cat([unit(f, slice(None)).double() for f in features], dim=1)
        mean = x.mean(0)
        x -= mean
        values, rows = eigen(x @ x.T / n)
        if values[width - 1] > RANK * values[0]:  # below, the rows say nothing of the component
            return mean, values[:width], _upright(x.T @ rows[:, :width] / (n * values[:width]).sqrt()), float(values.sum() / total)
    mean, covariance = moments(features)
    values, vectors = eigen(covariance)
    return mean, values[:width], vectors[:, :width], float(values.mean())


def spectrum(features: Features) -> Tensor:
    """Eigenvalues of the covariance of the concatenation at unit length, largest first: as many as there are rows or numbers, whichever are fewer."""
    x = torch.cat([unit(f, slice(None)).double() for f in features], dim=1)
    x = x - x.mean(0)
    products = x @ x.T if len(x) < x.shape[1] else x.T @ x
    values: Tensor = torch.linalg.eigvalsh(products)
    return values.flip(0).clamp(min=0) / len(x)


def exponent(codes: Tensor, spectrum: Tensor) -> float:
    """The power p for which the singular values of codes are those of the features to the power p: a slope between logarithms.

    1 is PCA, 1/2 half-whitened, 0 white. The loss of a descent does not fix it and k-NN depends on it.

    Args:
        codes: [N, d].
        spectrum: [D] eigenvalues of the features' covariance, largest first.

    Returns:
        The least-squares slope over the ranks that both have; nan where there are fewer than two.
    """
    centred = codes.double() - codes.double().mean(0)
    own = torch.linalg.eigvalsh(centred.T @ centred).flip(0).clamp(min=0) / len(codes)
    ranks = min(len(own), len(spectrum))
    own, spectrum = own[:ranks], spectrum[:ranks]
    kept = (own > 1e-10 * own[0]) & (spectrum > 1e-10 * spectrum[0])
    if kept.sum() < 2:
        return float("nan")
    x, y = spectrum[kept].log(), own[kept].log()
    x = x - x.mean()
    return float((x @ y) / (x @ x)) if (x @ x) > 1e-12 else float("nan")

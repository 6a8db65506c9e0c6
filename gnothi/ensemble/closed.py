"""Combiners in closed form: average, concatenation, PCA by a power, whitening, generalised CCA, Procrustes, one member alone.

All are linear maps of features at unit length, fitted from their mean and covariance, which are streamed; nothing is learned by gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from gnothi.contracts import SettingError, Spec
from gnothi.ensemble.members import Features, eigen, moments, principal, unit


class Linear:
    """A linear map a member, added up.

    Args:
        means: [D_j] a member, taken from its features at unit length.
        matrices: [D_j, r_j] a member, or None for the identity.
        at: the column of the result at which a member's r_j begin.
        width: r, of the result.
        unit: whether results are brought to unit length.
    """

    form = "linear"

    def __init__(self, means: Sequence[Tensor], matrices: Sequence[Tensor | None], at: Sequence[int], width: int, *, unit: bool = False) -> None:
        self.means, self.matrices, self.at, self.width, self.unit = list(means), list(matrices), list(at), width, unit
        self.log: dict[str, Any] = {}

    def transform(self, features: Sequence[Tensor | None]) -> Tensor:
        """[N, D_j] a member, or None where one is missing (it adds nothing), to [N, r]."""
        parts = []
        for x, mean, matrix, at in zip(features, self.means, self.matrices, self.at, strict=True):
            if x is not None:
                centred = F.normalize(x, dim=1) - mean.to(x.dtype)
                mapped = centred if matrix is None else centred @ matrix.to(x.dtype)
                parts.append(F.pad(mapped, (at, self.width - at - mapped.shape[1])))
        total = sum(parts[1:], parts[0])
        return F.normalize(total, dim=1) if self.unit else total

    def tensors(self) -> dict[str, Tensor]:
        """What it has fitted."""
        matrices = {f"{j}.matrix": m for j, m in enumerate(self.matrices) if m is not None}
        return {f"{j}.mean": mean for j, mean in enumerate(self.means)} | matrices

    def about(self) -> dict[str, Any]:
        """The rest of what it is, as plain values."""
        return {"form": self.form, "width": self.width, "at": self.at, "unit": self.unit}

    @classmethod
    def restore(cls, about: dict[str, Any], tensors: dict[str, Tensor], spec: Spec | None = None) -> Linear:
        """From ``about`` and ``tensors``."""
        members = range(len(about["at"]))
        matrices = [tensors.get(f"{j}.matrix") for j in members]
        return cls([tensors[f"{j}.mean"] for j in members], matrices, about["at"], int(about["width"]), unit=bool(about["unit"]))


def widths(features: Features) -> list[int]:
    """D_j of each member."""
    return [x.shape[1] for x in features]


def offsets(sizes: Sequence[int]) -> list[int]:
    """Where each member begins in the concatenation."""
    return [sum(sizes[:j]) for j in range(len(sizes))]


def _type(features: Features) -> torch.dtype:
    return unit(features[0], slice(0, 1)).dtype


def _means(features: Features, centre: bool) -> list[Tensor]:
    if not centre:
        return [torch.zeros(d, dtype=_type(features)) for d in widths(features)]
    return list(moments(features)[0].to(_type(features)).split(widths(features)))


# ---- without a fit, or nearly -----------------------------------------------------------------------
class AverageSpec(Spec):
    """Settings of the average and of the concatenation."""

    centre: bool = False
    """Take the training mean from each member's features at unit length."""


def average(features: Features, spec: AverageSpec) -> Linear:
    """The mean of the members at unit length, at unit length again; narrower ones are filled with zeros on the right."""
    sizes = widths(features)
    return Linear(_means(features, spec.centre), [None] * len(sizes), [0] * len(sizes), max(sizes), unit=True)


def concatenation(features: Features, spec: AverageSpec) -> Linear:
    """The members at unit length side by side: its cosine is the mean of theirs."""
    sizes = widths(features)
    return Linear(_means(features, spec.centre), [None] * len(sizes), offsets(sizes), sum(sizes))


class MemberSpec(Spec):
    """Settings of one member alone."""

    number: int = Field(default=0, ge=0)
    """Which, counted from 0 in the order in which they were given."""
    centre: bool = False
    """Take the training mean from its features at unit length."""


def member(features: Features, spec: MemberSpec) -> Linear:
    """One member at unit length; the others add nothing."""
    sizes = widths(features)
    if spec.number >= len(sizes):
        raise SettingError(f"number must name one of the {len(sizes)} members, counted from 0, got {spec.number}")
    nothing: list[Tensor | None] = [torch.zeros(d, sizes[spec.number], dtype=_type(features)) for d in sizes]
    nothing[spec.number] = None
    return Linear(_means(features, spec.centre), nothing, [0] * len(sizes), sizes[spec.number])


# ---- by covariance ------------------------------------------------------------------------------------
class ChoiceSpec(Spec):
    """How something is chosen by k-NN on held-out training rows."""

    k: int = Field(default=20, ge=1)
    """Neighbours that vote."""
    temperature: float = Field(default=0.07, gt=0)
    """A neighbour's vote is exp(similarity / temperature)."""
    fraction: float = Field(default=0.2, gt=0, lt=1)
    """Of the training rows with a label that is held out, by class and never through a group."""


class PCASpec(ChoiceSpec):
    """Settings of the principal components of the concatenation; the first three are for power=holdout."""

    power: Annotated[float, Field(ge=0, le=2)] | Literal["holdout"] = 0.0
    """Singular values of the result are those of the concatenation to this power: 1 plain PCA, 0.5 half-whitened, 0 white. "holdout" takes the one of
    0, 0.25, 0.5, 0.75 and 1 that does best by k-NN on held-out training rows, which need labels."""
    width: int | None = Field(default=None, ge=1)
    """Of the result; by default that of the widest member, or less where so many components do not exist."""
    floor: float = Field(default=0.1, gt=0)
    """Variances below this part of the mean variance are taken for that much: without it, whitening makes noise large."""


def pca(features: Features, spec: PCASpec) -> Linear:
    """Principal components of the centred concatenation, scaled by a power of their deviation."""
    assert not isinstance(spec.power, str)
    mean, values, vectors, level = principal(features, chosen_width(spec.width, features))
    matrix = vectors * values.clamp(min=spec.floor * level) ** ((spec.power - 1) / 2)
    return split(features, mean, matrix, [0] * len(features), matrix.shape[1])


def chosen_width(asked: int | None, features: Features) -> int:
    """Of the result: as asked, else that of the widest member; no more than there can be components.

    Raises:
        SettingError: more are asked for.
    """
    most = min(sum(widths(features)), len(features[0]) - 1)
    if asked is not None and asked > most:
        raise SettingError(
            f"width must be at most {most}, the components of {len(features[0])} images of {sum(widths(features))} numbers, got {asked}"
        )
    return min(max(widths(features)), most) if asked is None else asked


def spectral(covariance: Tensor, width: int, power: float, floor: float) -> Tensor:
    """[D, D] to the matrix [D, width] whose result has standard deviations to a power: V diag(s^(power - 1))."""
    values, vectors = eigen(covariance)
    return vectors[:, :width] * values.clamp(min=floor * float(values.mean()))[:width] ** ((power - 1) / 2)


def split(features: Features, mean: Tensor, matrix: Tensor, at: Sequence[int], width: int) -> Linear:
    """A mean [D] and a matrix [D, r] of the concatenation as maps of the members."""
    sizes, kind = widths(features), _type(features)
    return Linear(mean.to(kind).split(sizes), [m.to(kind).contiguous() for m in matrix.split(sizes)], at, width)


class WhitenedSpec(Spec):
    """Settings of the concatenation of whitened members."""

    power: float = Field(default=0.0, ge=0, le=2)
    """As for PCA, of each member by itself; 0 is white."""
    floor: float = Field(default=1e-4, gt=0)
    """As for PCA."""


def whitened(features: Features, spec: WhitenedSpec) -> Linear:
    """Each member whitened by itself, side by side."""
    sizes, kind, (mean, covariance) = widths(features), _type(features), moments(features)
    own = [covariance[a : a + d, a : a + d] for a, d in zip(offsets(sizes), sizes, strict=True)]
    matrices = [spectral(c, len(c), spec.power, spec.floor).to(kind) for c in own]
    return Linear(mean.to(kind).split(sizes), matrices, offsets(sizes), sum(sizes))


class GCCASpec(Spec):
    """Settings of generalised canonical correlation analysis."""

    width: int | None = Field(default=None, ge=1)
    """As for PCA."""
    ridge: float = Field(default=1e-2, ge=0)
    """Added to a member's covariance, as a part of its mean variance."""
    power: float = Field(default=0.0, ge=0, le=2)
    """0 is the orthonormal solution of MAX-VAR; 1 leaves each component the deviation that the members' agreement gives it."""


def gcca(features: Features, spec: GCCASpec) -> Linear:
    """MAX-VAR generalised CCA (Kettenring 1971): the directions on which whitened members agree most."""
    sizes, (mean, covariance) = widths(features), moments(features)
    inverse = torch.zeros_like(covariance)
    for a, d in zip(offsets(sizes), sizes, strict=True):
        part = slice(a, a + d)
        values, vectors = eigen(covariance[part, part])
        values = (values + spec.ridge * values.mean()).clamp(min=1e-12 * float(values.mean()))
        inverse[part, part] = (vectors * values**-0.5) @ vectors.T
    matrix = spectral(inverse @ covariance @ inverse, chosen_width(spec.width, features), spec.power, 1e-12)
    return split(features, mean, inverse @ matrix, [0] * len(sizes), matrix.shape[1])


class ProcrustesSpec(Spec):
    """Settings of the Procrustes-aligned average."""

    rounds: int = Field(default=5, ge=1)
    """How often all members are turned towards their mean."""
    centre: bool = True
    """Take the training mean from each member's features at unit length."""


def procrustes(features: Features, spec: ProcrustesSpec) -> Linear:
    """The mean of the members after each was turned to agree with it; narrower ones are turned into a part of the widest one's space."""
    sizes, (mean, products) = widths(features), moments(features)
    if not spec.centre:
        mean, products = torch.zeros_like(mean), products + torch.outer(mean, mean)
    parts = [slice(a, a + d) for a, d in zip(offsets(sizes), sizes, strict=True)]
    first = _central(products, parts)
    target = torch.zeros(len(mean), max(sizes), dtype=torch.float64)
    target[parts[first], : sizes[first]] = torch.eye(sizes[first], dtype=torch.float64)
    for _ in range(spec.rounds):
        turned = [_rotation(products[p] @ target) for p in parts]  # the target's features are Z @ target: covariances are all that is needed
        target = torch.cat(turned) / len(parts)
    return split(features, mean, target, [0] * len(sizes), max(sizes))


def _rotation(cross: Tensor) -> Tensor:
    """[D, r] to the nearest matrix with orthonormal rows or columns (Schoenemann 1966)."""
    u, _, v = torch.linalg.svd(cross, full_matrices=False)
    rotation: Tensor = u @ v
    return rotation


def _central(products: Tensor, parts: Sequence[slice]) -> int:
    """The widest member, of several the one that the others can be turned to best: whatever their order."""
    widest = max(p.stop - p.start for p in parts)
    agreement = [sum(float(torch.linalg.matrix_norm(products[p, q], "nuc")) for q in parts) if p.stop - p.start == widest else -1.0 for p in parts]
    return max(range(len(parts)), key=lambda j: agreement[j])

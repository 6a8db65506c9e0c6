"""What is chosen by k-NN on held-out training rows: the best member (by effective rank where there are no labels) and the power of PCA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gnothi.contracts import DataError
from gnothi.data import holdout
from gnothi.ensemble.closed import ChoiceSpec, Linear, MemberSpec, PCASpec, chosen_width, member, pca
from gnothi.ensemble.members import Features, rows_of, some_rows, unit
from gnothi.evaluate.linear import Rows
from gnothi.evaluate.nearest import predict
from gnothi.randomness import generator
from gnothi.training.health import rankme

MOST = 5000
"""Rows from which the effective rank is measured."""
LABELLED = 20_000
"""Labelled rows by which a choice is made, at most."""
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of PCA, among which is chosen."""


@dataclass(frozen=True)
class Known:
    """What a fit may know besides the features; only choices by k-NN look at labels."""

    seed: int = 0
    labels: np.ndarray | None = None
    """[N] int64, -1 where a row has none."""
    groups: np.ndarray | None = None
    """[N] of str."""
    folder: Path | None = None
    """Where a fit that descends keeps its state, and goes on."""
    hears: Callable[[int, int, float], None] | None = None
    """Told of the steps of such a fit."""


class BestSpec(ChoiceSpec):
    """How the best member is chosen."""


def best(features: Features, spec: BestSpec, known: Known) -> Linear:
    """The member that did best on rows held out of training, as it is; of equal ones the first."""
    found = scores(features, spec, known)
    number = int(np.argmax(found))
    made = member(features, MemberSpec(number=number))
    made.log = {"chosen": number, "scores": list(found)}
    return made


def scores(features: Features, spec: ChoiceSpec, known: Known) -> Sequence[float]:
    """k-NN accuracy on the held-out rows a member; without labels RankMe (Garrido et al. 2023), which is blind to what a task needs."""
    rows = divided(spec, known)
    if rows is None:
        drawn = some_rows(len(features[0]), MOST, known.seed, "ensemble rank")
        return [rankme(unit(x, drawn)) for x in features]
    kept, held = (torch.from_numpy(r) for r in rows)
    return [accuracy(unit(x, kept), unit(x, held), rows, spec, known) for x in features]


def powered(features: Features, spec: PCASpec, known: Known) -> Linear:
    """PCA by the power of the settings, or by the one that does best on rows held out of training, of equal ones the least.

    Raises:
        DataError: it is to be chosen and there are no labels.
    """
    if spec.power != "holdout":
        return pca(features, spec)
    rows = divided(spec, known)
    if rows is None:
        raise DataError("power=holdout needs labels of at least two classes, these images have none; power=0 needs none")
    kept, held = ([rows_of(x, torch.from_numpy(r)) for x in features] for r in rows)
    width = min(chosen_width(spec.width, features), len(kept[0]) - 1)  # fewer rows have fewer components
    found = {}
    for power in POWERS:
        made = pca(kept, spec.model_copy(update={"power": power, "width": width}))
        found[power] = accuracy(made.transform(kept), made.transform(held), rows, spec, known)
    power = max(found, key=lambda p: found[p])
    made = pca(features, spec.model_copy(update={"power": power}))
    made.log = {"chosen": power, "scores": {f"{p:g}": value for p, value in found.items()}}
    return made


def divided(spec: ChoiceSpec, known: Known) -> tuple[np.ndarray, np.ndarray] | None:
    """Labelled rows that answer and those that ask, no more than ``LABELLED`` together; None where there are not two classes."""
    labels = known.labels
    if labels is None or len(np.unique(labels[labels >= 0])) < 2:
        return None
    labelled = np.flatnonzero(labels >= 0)
    if len(labelled) > LABELLED:
        drawn = torch.randperm(len(labelled), generator=generator(known.seed, "ensemble choice"))[:LABELLED]
        labelled = labelled[drawn.sort().values.numpy()]
    kept, held = holdout(Rows(labels[labelled], None if known.groups is None else known.groups[labelled]), spec.fraction, known.seed)
    return labelled[kept], labelled[held]


def accuracy(x: Tensor, y: Tensor, rows: tuple[np.ndarray, np.ndarray], spec: ChoiceSpec, known: Known) -> float:
    """Of k-NN among rows [n, D] that answer and [m, D] that ask."""
    assert known.labels is not None
    return float(predict(x, known.labels[rows[0]], y, known.labels[rows[1]], spec.k, spec.temperature)[0].correct.mean())

"""The best member: by k-NN on held-out training rows where there are labels, by effective rank where there are none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field

from gnothi.contracts import Spec
from gnothi.data import holdout
from gnothi.ensemble.closed import Linear, MemberSpec, member
from gnothi.ensemble.members import Features, unit
from gnothi.evaluate.linear import Rows
from gnothi.evaluate.nearest import predict
from gnothi.randomness import generator
from gnothi.training.health import rankme

MOST = 5000
"""Rows from which the effective rank is measured."""


@dataclass(frozen=True)
class Known:
    """What a fit may know besides the features; only ``best`` looks at labels."""

    seed: int = 0
    labels: np.ndarray | None = None
    """[N] int64, -1 where a row has none."""
    groups: np.ndarray | None = None
    """[N] of str."""


class BestSpec(Spec):
    """How the best member is chosen."""

    k: int = Field(default=20, ge=1)
    """Neighbours that vote."""
    temperature: float = Field(default=0.07, gt=0)
    """A neighbour's vote is exp(similarity / temperature)."""
    fraction: float = Field(default=0.2, gt=0, lt=1)
    """Of the training rows with a label that is held out, by class and never through a group."""


def best(features: Features, spec: BestSpec, known: Known) -> Linear:
    """The member that did best on rows held out of training, as it is; of equal ones the first."""
    return member(features, MemberSpec(number=int(np.argmax(scores(features, spec, known)))))


def scores(features: Features, spec: BestSpec, known: Known) -> Sequence[float]:
    """k-NN accuracy on the held-out rows a member; without labels RankMe (Garrido et al. 2023), which is blind to what a task needs."""
    labels = known.labels
    if labels is None or len(np.unique(labels[labels >= 0])) < 2:
        rows = torch.randperm(len(features[0]), generator=generator(known.seed, "ensemble rank"))[:MOST].sort().values
        return [rankme(unit(x, rows)) for x in features]
    labelled = np.flatnonzero(labels >= 0)
    kept, held = holdout(Rows(labels[labelled], None if known.groups is None else known.groups[labelled]), spec.fraction, known.seed)
    train, test = labelled[kept], labelled[held]
    found = []
    for x in features:
        a, b = (unit(x, torch.from_numpy(rows)) for rows in (train, test))
        found.append(float(predict(a, labels[train], b, labels[test], spec.k, spec.temperature)[0].correct.mean()))
    return found

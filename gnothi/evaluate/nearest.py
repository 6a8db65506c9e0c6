"""k-nearest neighbours: exact, in blocks of bounded memory, with weighted votes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gnothi import distributed
from gnothi.contracts import DataError, SettingError, did_you_mean
from gnothi.evaluate.result import Predictions, Result, accuracy

Array = np.ndarray | Tensor
MEMORY = 1 << 28
"""Bytes that a search may take by default."""
WIDEST = 1 << 16
"""Training rows of a block."""
TALLEST = 256
"""Test rows of a product. Processes divide a search into whole products, so that each stays what it was, to the last bit."""
PARTS = 16
"""In so many a block is looked through for numbers that are not finite: the look takes as much room as what it looks at."""
GROUP = 16
"""Columns of which only the largest is looked at first."""
DISTANCES = {
    "cosine": "cosine, votes exp(similarity/{temperature:g})",
    "dot": "dot product of raw features, votes exp(product/{temperature:g})",
    "euclidean": "Euclidean on raw features, votes 1/(distance + 1e-5)",
}


@dataclass(frozen=True)
class Preset:
    """The protocol of a paper or a library."""

    k: int = 20
    temperature: float = 0.07
    distance: str = "cosine"


PRESETS = {
    "dino": Preset(),  # eval_knn.py of DINO: k 10, 20, 100, 200, of which 20 is usually best
    "dino-10": Preset(k=10),
    "dino-20": Preset(k=20),
    "dino-100": Preset(k=100),
    "dino-200": Preset(k=200),
    "lightly": Preset(k=200, temperature=0.1),  # lightly.utils.benchmarking.knn_predict
    "solo-learn": Preset(distance="euclidean"),  # solo.utils.knn, the default while it trains
    "solo-learn-cosine": Preset(distance="dot"),  # what it calls cosine: features are not normalised there
}


def preset(name: str) -> Preset:
    """A named protocol.

    Raises:
        SettingError: there is none of this name.
    """
    if name not in PRESETS:
        raise SettingError(f"preset must be one of the named protocols, got {name!r}; {did_you_mean(name, PRESETS)}")
    return PRESETS[name]


def knn(
    train: Array,
    train_labels: Array,
    test: Array,
    test_labels: Array,
    k: int = 20,
    temperature: float = 0.07,
    *,
    distance: str = "cosine",
    leave_one_out: bool | None = None,
    names: Sequence[str] | None = None,
    memory: int = MEMORY,
) -> Result:
    """Accuracy of the weighted vote of the k nearest training rows.

    Args:
        train: [N, D] features of any scale, also memory-mapped; a tensor's device does the work.
        train_labels: [N] integers; gaps are fine.
        test: [M, D].
        test_labels: [M] integers.
        k: neighbours that vote; where there are fewer rows all of them vote, and the protocol says so.
        temperature: the vote of a neighbour is exp(similarity / temperature).
        distance: "cosine", "dot" or "euclidean" (votes 1/(distance + 1e-5)).
        leave_one_out: a row does not vote for itself; by default where ``test`` is ``train``.
        names: names of the classes, by label.
        memory: bound in bytes on what the search itself takes.

    Returns:
        Metric "knn"; classes with equal votes go to the lower label.

    Raises:
        SettingError: k, temperature or distance cannot be.
        DataError: lengths differ, or features are not finite.
    """
    predictions, protocol = predict(
        train, train_labels, test, test_labels, k, temperature, distance=distance, leave_one_out=leave_one_out, names=names, memory=memory
    )
    return accuracy("knn", predictions, protocol)


def predict(
    train: Array,
    train_labels: Array,
    test: Array,
    test_labels: Array,
    k: int = 20,
    temperature: float = 0.07,
    *,
    distance: str = "cosine",
    leave_one_out: bool | None = None,
    names: Sequence[str] | None = None,
    memory: int = MEMORY,
    shared: bool = False,
) -> tuple[Predictions, str]:
    """The votes behind ``knn``, row by row, and the protocol in words; ``shared`` as in ``neighbours``."""
    known, asked = labels_of(train, train_labels, "train"), labels_of(test, test_labels, "test")
    alone = train is test if leave_one_out is None else leave_one_out
    check(k, temperature, distance, memory)
    _fit(train, test, alone)
    voters = len(train) - alone
    ids = np.union1d(known, asked)
    rows, closeness = neighbours(train, test, min(k, voters), distance=distance, leave_one_out=alone, memory=memory, shared=shared)
    weights = 1 / (1e-5 - closeness) if distance == "euclidean" else np.exp((closeness - closeness[:, :1]) / temperature)
    scores = np.zeros((len(test), len(ids)))
    columns = np.searchsorted(ids, known)[rows]
    for j in range(rows.shape[1]):  # nearest first: classes with the same similarities then have the same sum, to the last bit
        scores[np.arange(len(test)), columns[:, j]] += weights[:, j]
    scores /= scores.sum(axis=1, keepdims=True)
    classes = tuple(str(names[i]) if names is not None and 0 <= i < len(names) else str(i) for i in ids)
    note = f"k={k}" if k <= voters else f"k={voters} ({k} asked, there are no more)"
    how = DISTANCES[distance].format(temperature=temperature)
    protocol = f"k-NN, {note}, {how}, {len(train)} training rows" + (", leave one out" if alone else "")
    return Predictions(np.searchsorted(ids, asked), scores, classes), protocol


def neighbours(
    train: Array, test: Array, k: int, *, distance: str = "cosine", leave_one_out: bool = False, memory: int = MEMORY, shared: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest training rows of every test row, exactly.

    Args:
        train: [N, D].
        test: [M, D].
        k: at most N (N - 1 where one is left out).
        distance: as in ``knn``.
        leave_one_out: row i of ``train`` is no neighbour of row i of ``test``.
        memory: bound in bytes.
        shared: all processes of ``torchrun`` ask, each searches its share of the test rows, and every one gets all: what one would find, bit for bit.

    Returns:
        rows [M, k] int64, nearest first, equal ones by row number; and closeness [M, k] float64: similarity, product, or minus the distance.
    """
    device = train.device if isinstance(train, Tensor) else torch.device("cpu")
    tall, held, wide = sizes(len(train), train.shape[1], k, distance, memory)
    first, last = _share(len(test), tall) if shared else (0, len(test))
    rows, values = np.empty((len(test), k), dtype=np.int64), np.empty((len(test), k))
    for start in range(first, last, held):
        mine = _features(test, start, min(start + held, last), device, distance)
        best = _Best(len(mine), k, mine)
        for at in range(0, len(train), wide):
            theirs = _features(train, at, min(at + wide, len(train)), device, distance)
            for part in (slice(i, min(i + tall, len(mine))) for i in range(0, len(mine), tall)):
                near = mine[part] @ theirs.T  # [tall, wide]
                if distance == "euclidean":
                    near -= theirs.square().sum(1) / 2  # the order of minus the squared distance
                if leave_one_out:
                    _hide_own(near, start + part.start, at)
                best.merge(part, *_top(near, min(k, near.shape[1])), at)
            del theirs, near  # two blocks of training rows would not fit the bound together
        here = slice(start, start + len(mine))
        rows[here], values[here] = best.rows.cpu().numpy(), best.values.cpu().numpy()
        if distance == "euclidean":
            for part in (slice(i, min(i + tall, len(mine))) for i in range(0, len(mine), tall)):
                values[start:][part] = _minus_distances(train, mine[part], rows[start:][part], device).cpu().numpy()
    if shared:
        rows, values = (distributed.join(torch.from_numpy(found[first:last])).numpy() for found in (rows, values))
    return rows, values


def sizes(n: int, width: int, k: int, distance: str = "cosine", memory: int = MEMORY) -> tuple[int, int, int]:
    """How a search among n rows of so many numbers is divided to keep within its memory.

    Returns:
        test rows of a product; test rows whose best are kept while all training rows pass by; training rows of a block.
    """
    wide = max(1, min(n, WIDEST, memory // 4 // (4 * width)))
    tall = max(1, memory // 2 // (12 * wide + (16 * k * width if distance == "euclidean" else 0)))
    held = max(1, memory // 4 // (8 * (width + 6 * k)))
    tall = min(tall, held, TALLEST)
    return tall, held // tall * tall, wide


def _share(n: int, tall: int) -> tuple[int, int]:
    """Where this process's rows begin and end, of n: whole products, as many as any other process has or one more or less."""
    products = -(-n // tall)
    edges = (products * r // distributed.world() * tall for r in (distributed.rank(), distributed.rank() + 1))
    first, last = (min(edge, n) for edge in edges)
    return first, last


class _Best:
    """The k best of every row among those that came so far, nearest first, equal ones by row number."""

    def __init__(self, n: int, k: int, like: Tensor) -> None:
        self.values = torch.full((n, k), -torch.inf, dtype=like.dtype, device=like.device)
        self.rows = torch.zeros((n, k), dtype=torch.int64, device=like.device)

    def merge(self, part: slice, values: Tensor, columns: Tensor, at: int) -> None:
        """Take in what a later block of training rows, from number ``at`` on, has for some rows."""
        k = self.rows.shape[1]
        both, order = torch.cat([self.values[part], values], 1).sort(dim=1, descending=True, stable=True)
        self.values[part] = both[:, :k]
        self.rows[part] = torch.cat([self.rows[part], columns + at], 1).gather(1, order[:, :k])


def _top(near: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row [B, k], equal ones by column: ``topk`` leaves open which of the equal ones it takes."""
    values, columns = _largest(near, min(k + 1, near.shape[1]))
    if values.shape[1] > k:
        open_rows = (values[:, k - 1] == values[:, k]).nonzero()[:, 0]
        values, columns = values[:, :k], columns[:, :k].clone()
        for some in open_rows.split(8):  # a sort takes several times the room of what it sorts
            columns[some] = near[some].sort(dim=1, descending=True, stable=True).indices[:, :k]
    columns = columns.sort(dim=1).values
    values, order = near.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


def _largest(near: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """``near.topk(k)``, faster where a row is long: its k largest lie in the k groups of columns whose largest are largest."""
    groups = near.shape[1] // GROUP
    if groups < 4 * k:
        return near.topk(k, dim=1)
    whole = near[:, : groups * GROUP].view(len(near), GROUP, groups)  # a group is every so many columns: maxima are then taken of whole rows at once
    chosen = whole.amax(1).topk(k, dim=1, sorted=False).indices
    columns = (chosen[:, None] + groups * torch.arange(GROUP, device=near.device)[:, None]).flatten(1)  # [B, GROUP * k]
    rest = torch.arange(groups * GROUP, near.shape[1], device=near.device).expand(len(near), -1)
    columns = torch.cat([columns, rest], 1)
    values, order = near.gather(1, columns).topk(k, dim=1)
    return values, columns.gather(1, order)


def _hide_own(near: Tensor, start: int, at: int) -> None:
    low, high = max(start, at), min(start + near.shape[0], at + near.shape[1])
    own = torch.arange(low, max(low, high), device=near.device)
    near[own - start, own - at] = -torch.inf


def _minus_distances(train: Array, mine: Tensor, rows: np.ndarray, device: torch.device) -> Tensor:
    """Exact distances [B, k] of the neighbours found: the expanded square loses those of near duplicates."""
    theirs = train[torch.from_numpy(rows).to(device)] if isinstance(train, Tensor) else torch.from_numpy(np.asarray(train[rows]))
    return -(mine[:, None].double() - theirs.double()).square().sum(2).sqrt()


def _features(x: Array, start: int, stop: int, device: torch.device, distance: str) -> Tensor:
    block = x[start:stop] if isinstance(x, Tensor) else torch.from_numpy(np.array(x[start:stop]))
    block = block.to(device, torch.float64 if block.dtype == torch.float64 else torch.float32)
    some = max(1, len(block) // PARTS)
    for at, part in enumerate(block.split(some)):
        if not (finite := torch.isfinite(part).all(dim=1)).all():
            raise DataError(f"features must be finite numbers, row {int((~finite).nonzero()[0]) + at * some + start} is not")
    if distance != "cosine":
        return block
    return F.normalize(block, dim=1, out=None if isinstance(x, Tensor) else block)  # what was read from an array is a copy of our own


def labels_of(x: Array, labels: Array, what: str) -> np.ndarray:
    """[N] int64 labels, as many as there are features."""
    labels = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels).astype(np.int64)
    if len(labels) != len(x):
        raise DataError(f"{what} features and labels must be of one length, got {len(x)} and {len(labels)}")
    return labels


def check(k: int = 20, temperature: float = 0.07, distance: str = "cosine", memory: int = MEMORY) -> None:
    """Refuse settings that cannot be."""
    if distance not in DISTANCES:
        raise SettingError(f"distance must be cosine, dot or euclidean, got {distance!r}; {did_you_mean(distance, DISTANCES)}")
    if k < 1:
        raise SettingError(f"k must be at least 1, got {k}; 20 is usual")
    if not temperature > 0:
        raise SettingError(f"temperature must be positive, got {temperature}; 0.07 is usual")
    if memory < 1:
        raise SettingError(f"memory must be a positive number of bytes, got {memory}")


def _fit(train: Array, test: Array, alone: bool) -> None:
    if len(test) == 0 or len(train) - alone < 1:
        raise DataError(f"k-NN needs training and test rows, got {len(train)} and {len(test)}")
    if train.shape[1] != test.shape[1]:
        raise DataError(f"train and test features must be of one width, got {train.shape[1]} and {test.shape[1]}")
    if alone and len(train) != len(test):
        raise DataError(f"leave one out needs train and test to be the same rows, got {len(train)} and {len(test)}")
